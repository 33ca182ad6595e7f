"""Transformer-XL in TensorFlow: the model, the language model, the classifier of texts.

Shapes: B batch, S sequence, M memory, H heads, D width, L layers, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.evaluation import Evaluation, evaluate_stream
from xlmfam.tf.attention import Tensor, sizes
from xlmfam.tf.generation import GenerationMixin, Graphs
from xlmfam.tf.layers import (
    IGNORED,
    Linear,
    label_weights,
    mean_causal_lm_loss,
    without_ignored,
)
from xlmfam.tf.losses import LabelledLogitsMixin, classification_losses, weighted_mean
from xlmfam.tf.outputs import (
    ModelOutput,
    TransfoXLLMHeadModelOutput,
    TransfoXLSequenceClassifierOutputWithPast,
)
from xlmfam.tf.training import main_output
from xlmfam.tf.transfo_xl_memory import ProjectedMemory
from xlmfam.tf.transfo_xl_modules import AdaptiveEmbedding, AdaptiveSoftmax
from xlmfam.tf.transfo_xl_transformer import Mems, TransfoXLPreTrainedModel

__all__ = [
    "AdaptiveEmbedding",
    "TransfoXLForSequenceClassification",
    "TransfoXLLMHeadModel",
    "TransfoXLModel",
    "TransfoXLPreTrainedModel",
]


@keras.saving.register_keras_serializable("xlmfam")
class TransfoXLModel(TransfoXLPreTrainedModel):
    """Transformer-XL without a head.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "TransfoXLModel"

    def __init__(self, config: TransfoXLConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.post_init()

    def call(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, or a dict or list of all arguments.
            mems: (M, B, D) for each layer, what the last call returned; zeros of the length of the
                memory by default, which are attended to. Or what ``init_cache`` returned.
            head_mask: (L, H) or (H,) factors of attention weights.
            inputs_embeds: (B, S, D) instead of ``input_ids``, as ``word_emb`` gives them.
            output_attentions: Return attention weights; with a memory of keys and values, by slot.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.
            attention_mask: (B, S), 1 for tokens and 0 for padding on the left. The memory then
                stands right before each row's first token, as if there were no padding.

        Returns:
            ``mems`` among the rest: what to give to the next call.

        Raises:
            XlmfamError: For ids outside the vocabulary and shapes that do not fit.
        """
        output = self.transformer(
            input_ids=input_ids,
            mems=mems,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            attention_mask=attention_mask,
            training=training,
        )
        return self._finished(output, return_dict)


@keras.saving.register_keras_serializable("xlmfam")
class TransfoXLLMHeadModel(LabelledLogitsMixin, GenerationMixin, TransfoXLPreTrainedModel):
    """Transformer-XL with the adaptive softmax, tied to the embedding by default.

    ``fit`` and ``evaluate``, with the model's own loss and no metrics, compute no scores but those
    that the loss needs.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "TransfoXLLMHeadModel"
    generation_arguments = ("mems", "head_mask")
    shifts_labels = True
    xla_pays = math.inf  # its products of one row take twice the time of TensorFlow's own

    def __init__(self, config: TransfoXLConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.crit = AdaptiveSoftmax(config, dtype=self.dtype_policy, name="crit")
        self.post_init()

    def project(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities (..., V) of (..., D)."""
        *rows, width = sizes(hidden)
        scores = self.crit(tf.reshape(hidden, [-1, width]), self.transformer.word_emb)
        return tf.reshape(scores, [*rows, self.config.vocab_size])

    def call(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        training: bool | None = None,
        attention_mask: Tensor | None = None,
        last_logits_only: bool = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, or a dict or list of all arguments; see
                ``TransfoXLModel.call``, as for all arguments but ``labels`` and
                ``last_logits_only``.
            mems: (M, B, D) for each layer.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            output_attentions: Return attention weights.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            labels: (B, S) ids; position i is held against the scores of position i - 1, and -100
                does not count. There are ``losses`` (B, S - 1) and their mean ``loss`` then, and
                no scores.
            training: Drop values.
            attention_mask: (B, S).
            last_logits_only: Score the last position only, (B, 1, V).

        Raises:
            XlmfamError: For labels that do not fit, and see ``TransfoXLModel.call``.
        """
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds)
        output = self.transformer(
            input_ids=input_ids,
            mems=mems,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            attention_mask=attention_mask,
            training=training,
        )
        hidden, losses, loss, scores = output.last_hidden_state, None, None, None
        if labels is None:
            scores = self.project(hidden[:, -1:] if last_logits_only else hidden)
        else:
            targets = _targets(labels, attention_mask)
            losses = self._token_losses(hidden[:, :-1], targets)
            loss = tf.reduce_sum(losses) / _count(targets)
        result = TransfoXLLMHeadModelOutput(
            losses=losses,
            prediction_scores=scores,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            loss=loss,
        )
        return self._finished(result, return_dict)

    def _token_losses(
        self, hidden: Tensor, targets: Tensor, by_value: bool | None = None
    ) -> Tensor:
        """Return losses (B, S) of states (B, S, D); 0 where a target (B, S) is -100."""
        flat = tf.reshape(hidden, [-1, sizes(hidden)[-1]])
        wanted = tf.reshape(targets, [-1])
        losses = self.crit(flat, self.transformer.word_emb, wanted, by_value)
        return tf.reshape(losses, sizes(targets))

    def _check_labels(self, labels, input_ids, inputs_embeds) -> None:
        check_inputs(input_ids, inputs_embeds, self.config.d_model)
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_shape("labels", labels, tuple(given.shape[:2]))
        if given.shape[1] is not None and given.shape[1] < 2:
            raise XlmfamError("labels need two tokens in a row at least: the first has no score")
        self.check_ids("labels", without_ignored(labels))

    # ---- training and evaluation --------------------------------------------------------

    def states(self, **arguments: Any) -> Any:
        """Run what stands below the softmax."""
        return self.transformer(**arguments)

    def _for_loss(self, data: Any) -> tuple[Any, Any, Any]:
        x, y, weights = super()._for_loss(data)
        if y is not None and self.uses_own_loss:
            y = tf.convert_to_tensor(y)
            y = tf.concat([y[:, :1], _targets(y, x.get("attention_mask"))], axis=1)
        return x, y, weights

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of predicting the next label; zero where none counts."""
        labels = tf.convert_to_tensor(labels)
        if not (isinstance(output, ModelOutput) and "last_hidden_state" in output):
            return mean_causal_lm_loss(main_output(output), labels, weights)
        # XLA has no shapes that depend on values.
        by_value = not self.jit_compile
        targets = labels[:, 1:]
        losses = self._token_losses(output.last_hidden_state[:, :-1], targets, by_value)
        weights = label_weights(weights, is_shifted=True)
        if weights is not None:
            losses = losses * tf.cast(weights[:, : sizes(targets)[1]], losses.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(losses), _count(targets))

    def token_losses(
        self,
        input_ids: Tensor,
        targets: Tensor,
        mems: Mems | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Return the losses (B, S) of what follows each token, and the mems for the next call.

        Args:
            input_ids: (B, S).
            targets: (B, S), what each position is to predict; -100 does not count and costs 0.
            mems: See ``TransfoXLModel.call``.
            attention_mask: (B, S).

        Raises:
            XlmfamError: For inputs that do not fit.
        """
        input_ids, targets = tf.convert_to_tensor(input_ids), tf.convert_to_tensor(targets)
        check_shape("targets", targets, tuple(input_ids.shape))
        self.check_ids("targets", without_ignored(targets))
        output = self.transformer(input_ids, mems, attention_mask=attention_mask, training=False)
        return self._token_losses(output.last_hidden_state, targets), output.mems

    def evaluate_perplexity(
        self,
        stream: Any,
        batch_size: int = 1,
        segment_length: int = 128,
        memory_length: int | None = None,
        clamp_length: int | None = None,
    ) -> Evaluation:
        """Evaluate a long text with carried memories, as section 4 of the paper does.

        Each token is projected to keys and values once; a segment is one compiled step.

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
        transformer, config = self.transformer, self.config
        before = transformer.mem_len, config.clamp_len
        memory = before[0] if memory_length is None else memory_length
        if memory < 0:
            raise XlmfamError(f"mem_len must be 0 or more, got {memory}")
        clamp = before[1] if clamp_length is None else clamp_length
        run = self._evaluation_step((memory, clamp))

        def step(ids, targets, mems):
            self.check_ids("the text", tf.constant(ids))
            self.check_ids("the text", tf.constant(targets))
            if mems is None:
                mems = self.init_cache(batch_size, segment_length)
            # The last segment may be shorter; it is filled up so that one graph serves for all.
            rest = ((0, 0), (0, segment_length - ids.shape[1]))
            ids = np.pad(ids, rest).astype(np.int32)
            targets = np.pad(targets, rest, constant_values=IGNORED).astype(np.int32)
            loss, mems = run(ids, targets, mems)
            return float(loss), mems

        try:
            transformer.mem_len, config.clamp_len = memory, clamp
            return evaluate_stream(step, stream, batch_size, segment_length)
        finally:
            transformer.mem_len, config.clamp_len = before

    def _evaluation_step(self, lengths: tuple[int, int]) -> Any:
        """Return the compiled step of an evaluation with these lengths of memory and clamping."""
        known = self.__dict__.setdefault("_evaluation_graphs", Graphs()).by_options
        if lengths not in known:

            def step(ids, targets, mems):
                output = self.transformer(ids, mems, training=False)
                losses = self._token_losses(output.last_hidden_state, targets, by_value=True)
                return tf.reduce_sum(tf.cast(losses, tf.float64)), output.mems

            known[lengths] = tf.function(step, autograph=False)
        return known[lengths]

    def forget_traces(self) -> None:
        """Drop all graphs: those of ``generate``, of evaluations, and Keras's."""
        super().forget_traces()
        self.__dict__["_evaluation_graphs"] = Graphs()

    # ---- generation ---------------------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:
        """Whether there is a memory to keep."""
        return self.transformer.mem_len > 0

    def prepare_generation(self, plan, prompt, mask, extra: dict[str, Any]) -> dict[str, Any]:
        """Check mems; return them as one tensor, (B, L, M, D)."""
        mems = extra.pop("mems", None)
        extra = super().prepare_generation(plan, prompt, mask, extra)
        if mems is None:
            return extra
        if isinstance(mems, ProjectedMemory):
            raise XlmfamError("generate takes the mems that a call returned, no init_cache(...)")
        layers, width = self.config.n_layer, self.config.d_model
        if len(mems) != layers:
            raise XlmfamError(f"mems must have one for each of {layers} layers, got {len(mems)}")
        mems = [tf.cast(memory, self.compute_dtype) for memory in mems]
        for memory in mems:
            check_shape("a layer of mems", memory, (mems[0].shape[0], prompt.shape[0], width))
        if not bool(tf.reduce_all(mask == mask[:1])):
            self.transformer.check_whole(mems[0].shape[0])
        extra["mems"] = tf.transpose(tf.stack(mems), [2, 0, 1, 3])
        return extra

    def prepare_greedy(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Let tail clusters be skipped that cannot have the best word."""
        return {**extra, "only_the_best": True}

    def next_logits(self, ids, mask, cache, extra: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return scores (R, V) of the token that follows; see ``GenerationMixin``."""
        if cache is not None:
            # What stood behind padding has been moved; from there on rows are alike.
            output = self._run(ids, cache, None, extra)
        else:
            output = self._run(ids, _layers(extra), mask, extra, room=1)
        return self._last(output.last_hidden_state[:, -1], extra), output.mems

    def cache_after_prompt(self, past: ProjectedMemory, width: int, times: int) -> ProjectedMemory:
        """Return the memory of the prompts with every row repeated; see ``GenerationMixin``."""
        del width
        return past.repeat(times)

    def logits_after(self, ids, length, mask, extra: dict[str, Any]) -> Tensor:
        """Return scores (R, V) of what follows ``length`` columns; see ``GenerationMixin``."""
        output = self._run(ids, _layers(extra), mask, extra)
        return self._last(tf.gather(output.last_hidden_state, length - 1, axis=1), extra)

    def _run(self, ids, mems, mask, extra: dict[str, Any], room: int | None = None):
        return self.transformer(
            input_ids=ids,
            mems=mems,
            head_mask=extra.get("head_mask"),
            attention_mask=mask,
            training=False,
            output_attentions=False,
            output_hidden_states=False,
            room=room,
        )

    def _last(self, hidden: Tensor, extra: dict[str, Any]) -> Tensor:
        words, best = self.transformer.word_emb, extra.get("only_the_best", False)
        return self.crit(hidden, words, only_the_best=best)


def _layers(extra: dict[str, Any]) -> list[Tensor] | None:
    """Return (M, B, D) for each layer of what ``prepare_generation`` made of them."""
    if "mems" not in extra:
        return None
    return tf.unstack(tf.transpose(extra["mems"], [1, 2, 0, 3]))


def _targets(labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return what each position but the last is to predict, (B, S - 1)."""
    targets = labels[:, 1:]
    if attention_mask is None:
        return targets
    # What padding predicts means nothing.
    return tf.where(tf.cast(attention_mask[:, :-1], tf.bool), targets, IGNORED)


def _count(targets: Tensor) -> Tensor:
    return tf.reduce_sum(tf.cast(targets != IGNORED, tf.float32))


@keras.saving.register_keras_serializable("xlmfam")
class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """Transformer-XL that classifies texts by the state of their last token.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "TransfoXLForSequenceClassification"

    def __init__(self, config: TransfoXLConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.score = Linear(dtype=self.dtype_policy, name="score")
        self.post_init()

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the samples; zero where none counts."""
        labels = tf.convert_to_tensor(labels)
        losses = classification_losses(self.config, main_output(output), labels, none=0.0)
        return weighted_mean(losses, weights)

    def call(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        training: bool | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, or a dict or list of all arguments; see
                ``TransfoXLModel.call``, as for all arguments but ``labels``. The text ends before
                the first ``pad_token_id``.
            mems: (M, B, D) for each layer.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D); the text is all of it.
            output_attentions: Return attention weights.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            labels: (B,) classes; (B, num_labels) floats for several classes at once; floats, (B,)
                or (B, num_labels), for regression. ``config.problem_type`` says which; by default
                the dtype and the number of classes do. ``loss`` is then (B,).
            training: Drop values.
            attention_mask: (B, S).

        Raises:
            XlmfamError: For labels that do not fit, for several rows of ids without a padding
                token in the config, and see ``TransfoXLModel.call``.
        """
        output = self.transformer(
            input_ids=input_ids,
            mems=mems,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            attention_mask=attention_mask,
            training=training,
        )
        logits = self.score(self._ends(input_ids, output.last_hidden_state, attention_mask))
        result = TransfoXLSequenceClassifierOutputWithPast(
            loss=None if labels is None else classification_losses(self.config, logits, labels),
            logits=logits,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)

    def _ends(
        self, input_ids: Tensor | None, hidden: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """Return the state (B, D) of each row's last token."""
        batch, pad = hidden.shape[0], self.config.pad_token_id
        if input_ids is None or attention_mask is not None:
            return hidden[:, -1]
        if pad is None:
            if batch is None or batch > 1:
                raise XlmfamError(
                    "texts of a batch end before their padding: set pad_token_id in the config, "
                    "or give attention_mask for padding on the left"
                )
            return hidden[:, -1]
        is_padding = tf.cast(input_ids == pad, tf.int32)
        first = tf.argmax(is_padding, -1, output_type=tf.int32)
        # Without any, and with padding at the first place, it is the last position.
        last = tf.where(first > 0, first - 1, sizes(hidden)[1] - 1)
        return tf.gather(hidden, last, batch_dims=1)


TFAdaptiveEmbedding = AdaptiveEmbedding
TFTransfoXLPreTrainedModel = TransfoXLPreTrainedModel
TFTransfoXLModel = TransfoXLModel
TFTransfoXLLMHeadModel = TransfoXLLMHeadModel
TFTransfoXLForSequenceClassification = TransfoXLForSequenceClassification
