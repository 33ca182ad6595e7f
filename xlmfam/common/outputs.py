"""Output fields of every model, the same in the three backends.

Shapes: B batch, S sequence, T sequence with past, H heads, D width, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar


class ModelOutput(OrderedDict):
    """Named results: attribute, key, index and slice; only fields that are not ``None`` count.

    ``output.logits``, ``output["logits"]`` and ``output[0]`` are the same thing;
    ``output.to_tuple()`` is the tuple that ``return_dict=False`` gives.
    """

    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        values = dict(*args, **kwargs)
        unknown = [name for name in values if name not in self.fields]
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(unknown)}")
        present = [(name, values[name]) for name in self.fields if values.get(name) is not None]
        super().__init__(present)

    def __getattr__(self, name: str) -> Any:
        if name in type(self).fields:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__} has no field '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).fields:
            raise AttributeError(f"{type(self).__name__} has no field '{name}'")
        if value is None:
            self.pop(name, None)
            return
        self[name] = value
        for later in self.fields[self.fields.index(name) + 1 :]:
            if later in self:
                self.move_to_end(later)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values that are there, in field order."""
        return tuple(super(ModelOutput, self).__getitem__(name) for name in self.keys())

    def __reduce__(self):
        return type(self), (dict(self.items()),)


class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """Result of a base model.

    Fields:
        last_hidden_state: (B, S, D), after the final norm.
        past_key_values: Keys and values, see the backend's ``cache`` module.
        hidden_states: One (B, S, D) per layer and the embeddings; the last one is normed.
        attentions: One (B, H, S, T) per layer.
        cross_attentions: One (B, H, S, S_encoder) per layer.
    """

    fields = (
        "last_hidden_state",
        "past_key_values",
        "hidden_states",
        "attentions",
        "cross_attentions",
    )


class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """Result of a base model with a pooling layer.

    Fields:
        last_hidden_state: (B, S, D).
        pooler_output: (B, D), the first position through the pooling layer.
        hidden_states: The embeddings and one (B, S, D) per layer.
        past_key_values: Keys and values of a decoder, see the backend's ``cache`` module.
        attentions: One (B, H, S, T) per layer.
        cross_attentions: One (B, H, S, S_encoder) per layer.
    """

    fields = (
        "last_hidden_state",
        "pooler_output",
        "hidden_states",
        "past_key_values",
        "attentions",
        "cross_attentions",
    )


class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Result of a causal language model.

    Fields:
        loss: Mean cross entropy over the shifted labels; in TensorFlow per label.
        logits: (B, S, V).
        past_key_values, hidden_states, attentions, cross_attentions: As in the base model.
    """

    fields = (
        "loss",
        "logits",
        "past_key_values",
        "hidden_states",
        "attentions",
        "cross_attentions",
    )


class GenerateOutput(ModelOutput):
    """Result of ``generate`` with ``return_dict_in_generate=True``.

    Fields:
        sequences: (B * num_return_sequences, L) token ids, prompt included.
        scores: Processed scores of every step, a tuple of (B * num_beams, V).
        sequences_scores: (B * num_return_sequences,) of beam search.
        beam_indices: (B * num_return_sequences, steps): the beam that each token came from.
    """

    fields = ("sequences", "scores", "sequences_scores", "beam_indices")


class BaseModelOutput(ModelOutput):
    """Result of a base model that is an encoder.

    Fields:
        last_hidden_state: (B, S, D).
        hidden_states: The embeddings and one (B, S, D) per layer.
        attentions: One (B, H, S, T) per layer.
    """

    fields = ("last_hidden_state", "hidden_states", "attentions")


class MaskedLMOutput(ModelOutput):
    """Result of a model with a vocabulary projection.

    Fields:
        loss: Mean cross entropy of the labels; in TensorFlow per label.
        logits: (B, S, V); of an adaptive softmax, log-probabilities. Where only labelled
            positions were asked for, (n, V) in the order of the labels.
        hidden_states, attentions: As in the base model.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class SequenceClassifierOutput(ModelOutput):
    """Result of classifying texts.

    Fields:
        loss: Classification or regression loss; in TensorFlow per sample.
        logits: (B, num_labels).
        hidden_states, attentions: As in the base model.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class MultipleChoiceModelOutput(ModelOutput):
    """Result of choosing among texts.

    Fields:
        loss: Mean cross entropy; in TensorFlow per sample.
        logits: (B, choices).
        hidden_states, attentions: As in the base model, with B * choices rows.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class TokenClassifierOutput(ModelOutput):
    """Result of classifying tokens.

    Fields:
        loss: Mean cross entropy of the labels; in TensorFlow per label.
        logits: (B, S, num_labels).
        hidden_states, attentions: As in the base model.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class QuestionAnsweringModelOutput(ModelOutput):
    """Result of looking for an answer in a text.

    Fields:
        loss: Mean of the cross entropies of start and end; in TensorFlow per sample.
        start_logits, end_logits: (B, S).
        hidden_states, attentions: As in the base model.
    """

    fields = ("loss", "start_logits", "end_logits", "hidden_states", "attentions")


class XLMForQuestionAnsweringOutput(ModelOutput):
    """Result of looking for an answer with a beam of starts and, for each, of ends.

    Fields:
        loss: Where both positions are given; there is nothing else then.
        start_top_log_probs, start_top_index: (B, start_n_top), best first. As in transformers
            these are probabilities, whatever the name says.
        end_top_log_probs, end_top_index: (B, start_n_top * end_n_top); rank r of the ends of
            start s is entry ``r * start_n_top + s``.
        cls_logits: (B,), high where there is no answer.
        hidden_states, attentions: As in the base model.
    """

    fields = (
        "loss",
        "start_top_log_probs",
        "start_top_index",
        "end_top_log_probs",
        "end_top_index",
        "cls_logits",
        "hidden_states",
        "attentions",
    )


class TransfoXLModelOutput(ModelOutput):
    """Result of Transformer-XL without a head.

    Fields:
        last_hidden_state: (B, S, D).
        mems: (M, B, D) for each layer, for the next call.
        hidden_states: The embeddings and one (B, S, D) per layer.
        attentions: One (B, H, S, M + S) per layer.
    """

    fields = ("last_hidden_state", "mems", "hidden_states", "attentions")


class TransfoXLLMHeadModelOutput(ModelOutput):
    """Result of Transformer-XL with the adaptive softmax.

    Fields:
        losses: (B, S - 1), of the second token on; 0 where a label does not count.
        prediction_scores: (B, S, V) log-probabilities; also ``logits``. Not with labels.
        mems: (M, B, D) for each layer, for the next call.
        hidden_states: The embeddings and one (B, S, D) per layer.
        attentions: One (B, H, S, M + S) per layer.
        loss: The mean of the losses that count.
    """

    fields = ("losses", "prediction_scores", "mems", "hidden_states", "attentions", "loss")

    @property
    def logits(self) -> Any:
        """The log-probabilities by their other name."""
        return self.prediction_scores


class TransfoXLSequenceClassifierOutputWithPast(ModelOutput):
    """Result of Transformer-XL that classifies texts.

    Fields:
        loss: Where there are labels.
        logits: (B, classes).
        mems: (M, B, D) for each layer, for the next call.
        hidden_states: The embeddings and one (B, S, D) per layer.
        attentions: One (B, H, S, M + S) per layer.
    """

    fields = ("loss", "logits", "mems", "hidden_states", "attentions")


class Seq2SeqLMOutput(ModelOutput):
    """Result of a translation model.

    Fields:
        loss: Mean cross entropy of the labels; in TensorFlow per label.
        logits: (B, S, V).
        decoder_hidden_states, decoder_attentions, cross_attentions: Of the decoder.
        encoder_last_hidden_state: (B, S_encoder, D).
        encoder_hidden_states, encoder_attentions: Of the encoder.
    """

    fields = (
        "loss",
        "logits",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
    )


OUTPUTS: tuple[type[ModelOutput], ...] = (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    GenerateOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    TransfoXLLMHeadModelOutput,
    TransfoXLModelOutput,
    TransfoXLSequenceClassifierOutputWithPast,
    XLMForQuestionAnsweringOutput,
)
