"""X-MOD's heads for classification and question answering in TensorFlow.

Losses are one per sample, or per label; their mean is the loss that PyTorch returns.

Shapes: B batch, S sequence, C choices, D width, H heads, L layers.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from xlmfam.common.checks import check_shape
from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.tf.attention import Tensor, sizes
from xlmfam.tf.checks import check_labels
from xlmfam.tf.layers import Linear, TableLayer, label_losses, label_weights, mean_label_loss
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
)
from xlmfam.tf.training import main_output
from xlmfam.tf.xmod_transformer import XmodPreTrainedModel, XmodTransformer


class XmodHead(XmodPreTrainedModel):
    """What the heads share: X-MOD itself, and the dropout before a classifier."""

    has_pooling_layer = False

    def __init__(self, config: XmodConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.roberta = XmodTransformer(
            config, self.has_pooling_layer, dtype=self.dtype_policy, name="roberta"
        )
        rate = config.classifier_dropout
        self.classifier_dropout = config.hidden_dropout_prob if rate is None else rate


class XmodClassificationHead(TableLayer):
    """Classifies a text by its first position.

    Args:
        **kwargs: Of the layer.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.dense = Linear(dtype=self.dtype_policy, name="dense")
        self.out_proj = Linear(dtype=self.dtype_policy, name="out_proj")


@keras.saving.register_keras_serializable("xlmfam")
class XmodForSequenceClassification(XmodHead):
    """X-MOD with a classifier or regressor of texts.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XmodForSequenceClassification"

    def __init__(self, config: XmodConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.classifier = XmodClassificationHead(dtype=self.dtype_policy, name="classifier")
        self.post_init()

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the samples; zero where none counts."""
        labels = tf.convert_to_tensor(labels)
        losses = classification_losses(self.config, main_output(output), labels, none=0.0)
        return weighted_mean(losses, weights)

    def call(
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
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.call``.
            lang_ids: Languages by code or number.
            attention_mask: (B, S).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            labels: (B,) classes; (B, num_labels) floats for several classes at once; floats,
                (B,) or (B, num_labels), for regression. ``config.problem_type`` says which; by
                default one label is a regression, integers are classes, floats are several.
                ``loss`` is then (B,).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.call``.
        """
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=training,
        )
        dropper, rate = self.roberta.dropper(training), self.classifier_dropout
        hidden = dropper.drop(output.last_hidden_state[:, 0], rate)
        hidden = dropper.drop(tf.tanh(self.classifier.dense(hidden)), rate)
        logits = self.classifier.out_proj(hidden)
        result = SequenceClassifierOutput(
            loss=None if labels is None else classification_losses(self.config, logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


@keras.saving.register_keras_serializable("xlmfam")
class XmodForMultipleChoice(XmodHead):
    """X-MOD that scores each of several texts.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XmodForMultipleChoice"
    input_dimensions = 3
    has_pooling_layer = True

    def __init__(self, config: XmodConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.classifier = Linear(dtype=self.dtype_policy, name="classifier")
        self.post_init()

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the samples; zero where none counts."""
        labels = tf.convert_to_tensor(labels)
        losses = choice_losses(main_output(output), column("labels", labels, None), none=0.0)
        return weighted_mean(losses, weights)

    def call(
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
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, C, S) token ids, see ``XmodModel.call``.
            lang_ids: Languages by code or number: one, one per sample, one per choice (B, C), or
                (B, C, S).
            token_type_ids: (B, C, S).
            attention_mask: (B, C, S).
            labels: (B,) number of the right choice; ``loss`` is then (B,).
            position_ids: (B, C, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, C, S, D).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.call``.
        """
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        dimensions = 3 if inputs_embeds is None else 4
        if given is None or len(given.shape) != dimensions:
            shape = None if given is None else tuple(given.shape)
            wanted = "(batch, choices, sequence)" if dimensions == 3 else "with a width behind it"
            raise XlmfamError(f"the inputs must be {wanted}, got {shape}")
        check_shape("labels", labels, (given.shape[0],))
        check_labels(labels, given.shape[1])
        output = self.roberta(
            input_ids=flat(input_ids),
            lang_ids=choice_langs(self.config, lang_ids, given),
            attention_mask=flat(attention_mask),
            token_type_ids=flat(token_type_ids),
            position_ids=flat(position_ids),
            head_mask=head_mask,
            inputs_embeds=flat(inputs_embeds),
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=training,
        )
        dropper = self.roberta.dropper(training)
        pooled = dropper.drop(output.pooler_output, self.config.hidden_dropout_prob)
        logits = tf.reshape(self.classifier(pooled), sizes(given)[:2])
        result = MultipleChoiceModelOutput(
            loss=None if labels is None else choice_losses(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


@keras.saving.register_keras_serializable("xlmfam")
class XmodForTokenClassification(XmodHead):
    """X-MOD with a classifier of tokens.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XmodForTokenClassification"

    def __init__(self, config: XmodConfig, dtype: Any = None, **kwargs: Any):
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
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.call``.
            lang_ids: Languages by code or number.
            attention_mask: (B, S).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            labels: (B, S) classes; -100 does not count. ``loss`` is then (N,), one per label that
                counts; XLA, which cannot have that shape, trains through ``fit``.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.call``.
        """
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=training,
        )
        dropper = self.roberta.dropper(training)
        logits = self.classifier(dropper.drop(output.last_hidden_state, self.classifier_dropout))
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
class XmodForQuestionAnswering(XmodHead):
    """X-MOD that scores each token as start and as end of the answer.

    In ``fit`` the targets are ``start_positions`` and ``end_positions``, and what losses and
    metrics of ``compile`` see are the logits under the same two names.

    Args:
        config: The config; ``num_labels`` must be 2.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.

    Raises:
        XlmfamError: For another number of labels.
    """

    table_class = "XmodForQuestionAnswering"
    label_names = ("start_positions", "end_positions")

    def __init__(self, config: XmodConfig, dtype: Any = None, **kwargs: Any):
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
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.call``.
            lang_ids: Languages by code or number.
            attention_mask: (B, S).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            start_positions: (B,) or (B, 1); one at or beyond S does not count, a negative one is 0.
                ``loss`` is then (B,), the mean of start and end; where positions do not count,
                the others of their side are scaled up so that the mean is theirs alone.
            end_positions: The same, for the end.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.call``.
        """
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
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


TFXmodForSequenceClassification = XmodForSequenceClassification
TFXmodForMultipleChoice = XmodForMultipleChoice
TFXmodForTokenClassification = XmodForTokenClassification
TFXmodForQuestionAnswering = XmodForQuestionAnswering
