"""The linen modules of XLM's heads for classification and question answering.

Shapes: B batch, S sequence, C choices, D width, K starts kept, M ends kept.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from xlmfam.common.configs import XLMConfig
from xlmfam.flax.losses import binary_loss, classification_loss, mean_loss, within
from xlmfam.flax.outputs import (
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    XLMForQuestionAnsweringOutput,
)
from xlmfam.flax.xlm_modules import BeamAnswers, SequenceSummary, dense, take_positions
from xlmfam.flax.xlm_transformer import XLMModule

# A head's output, and with use_cache=True the keys and values: its output has no field for them.
Found = tuple[ModelOutput, Any]


class XLMHeadModule(nn.Module):
    """What the heads' modules share: XLM itself.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XLMConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build the transformer and the head."""
        self.transformer = XLMModule(self.config, self.dtype, self.gradient_checkpointing)
        self.build()

    def build(self) -> None:
        """Build the head."""
        raise NotImplementedError


class XLMForSequenceClassificationModule(XLMHeadModule):
    """XLM with a classifier or regressor of texts, as a linen module."""

    def build(self) -> None:
        """Build the head."""
        self.sequence_summary = SequenceSummary(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> Found:
        """Run the module; the wrapper checks and prepares what comes here."""
        output = self.transformer(input_ids, deterministic=deterministic, **kwargs)
        logits = self.sequence_summary(output.last_hidden_state, deterministic=deterministic)
        loss = None if labels is None else classification_loss(self.config, logits, labels)
        result = SequenceClassifierOutput(loss=loss, logits=logits, **_layers(output))
        return result, output.past_key_values


class XLMForMultipleChoiceModule(XLMHeadModule):
    """XLM that scores each of several texts, as a linen module."""

    def build(self) -> None:
        """Build the head."""
        self.sequence_summary = SequenceSummary(self.config, self.dtype)
        self.logits_proj = dense(self.config, 1, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        choices: int = 1,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> Found:
        """Run the module on B * C rows; the wrapper checks and prepares what comes here."""
        output = self.transformer(input_ids, deterministic=deterministic, **kwargs)
        summary = self.sequence_summary(output.last_hidden_state, deterministic=deterministic)
        logits = self.logits_proj(summary).reshape(-1, choices)
        loss = None if labels is None else mean_loss(logits, labels)
        result = MultipleChoiceModelOutput(loss=loss, logits=logits, **_layers(output))
        return result, output.past_key_values


class XLMForTokenClassificationModule(XLMHeadModule):
    """XLM with a classifier of tokens, as a linen module."""

    def build(self) -> None:
        """Build the head."""
        self.drop = nn.Dropout(self.config.dropout)
        self.classifier = dense(self.config, self.config.num_labels, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> Found:
        """Run the module; the wrapper checks and prepares what comes here."""
        output = self.transformer(input_ids, deterministic=deterministic, **kwargs)
        logits = self.classifier(self.drop(output.last_hidden_state, deterministic))
        loss = None if labels is None else mean_loss(logits, labels)
        result = TokenClassifierOutput(loss=loss, logits=logits, **_layers(output))
        return result, output.past_key_values


class XLMForQuestionAnsweringSimpleModule(XLMHeadModule):
    """XLM that scores each token as start and as end of the answer, as a linen module."""

    def build(self) -> None:
        """Build the head."""
        self.qa_outputs = dense(self.config, self.config.num_labels, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        start_positions: Array | None = None,
        end_positions: Array | None = None,
        **kwargs: Any,
    ) -> Found:
        """Run the module; the wrapper checks and prepares what comes here."""
        output = self.transformer(input_ids, **kwargs)
        logits = self.qa_outputs(output.last_hidden_state)
        start, end = logits[..., 0], logits[..., 1]
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start.shape[1]
            start_loss = mean_loss(start, within(start_positions, length))
            loss = (start_loss + mean_loss(end, within(end_positions, length))) / 2
        result = QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, **_layers(output)
        )
        return result, output.past_key_values


class XLMForQuestionAnsweringModule(XLMHeadModule):
    """XLM that finds answers with a beam, as a linen module."""

    def build(self) -> None:
        """Build the head."""
        self.qa_outputs = BeamAnswers(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        start_positions: Array | None = None,
        end_positions: Array | None = None,
        is_impossible: Array | None = None,
        cls_index: Array | None = None,
        p_mask: Array | None = None,
        **kwargs: Any,
    ) -> Found:
        """Run the module; the wrapper checks and prepares what comes here."""
        output = self.transformer(input_ids, **kwargs)
        hidden = output.last_hidden_state
        if start_positions is not None and end_positions is not None:
            loss = self._loss(
                hidden, start_positions, end_positions, is_impossible, cls_index, p_mask
            )
            answers = {"loss": loss}
        else:
            answers = self._best(hidden, cls_index, p_mask)
        result = XLMForQuestionAnsweringOutput(**answers, **_layers(output))
        return result, output.past_key_values

    def _loss(self, hidden, start, end, is_impossible, cls_index, p_mask) -> Array:
        """Return the mean loss of start and end, with half that of there being no answer."""
        scorers = self.qa_outputs
        state = take_positions(hidden, start)
        start_loss = mean_loss(scorers.start_logits(hidden, p_mask), start)
        end_loss = mean_loss(scorers.end_logits(hidden, state, p_mask), end)
        loss = (start_loss + end_loss) / 2
        if cls_index is None or is_impossible is None:
            return loss
        logits = scorers.answer_class(hidden, state, cls_index)
        return loss + 0.5 * binary_loss(logits, is_impossible)

    def _best(self, hidden, cls_index, p_mask) -> dict[str, Array]:
        """Return the best starts, the best ends for each, and the score of no answer."""
        scorers, config = self.qa_outputs, self.config
        starts = jax.nn.softmax(scorers.start_logits(hidden, p_mask).astype(jnp.float32), -1)
        start_best, start_index = lax.top_k(starts, config.start_n_top)
        rows = jnp.arange(len(hidden))[:, None]
        chosen = hidden[rows, start_index]  # (B, K, D)
        spread = jnp.broadcast_to(hidden[:, None], (*chosen.shape[:2], *hidden.shape[1:]))
        masks = None if p_mask is None else p_mask[:, None]
        scores = scorers.end_logits(spread, chosen, masks).astype(jnp.float32)
        end_best, end_index = lax.top_k(jax.nn.softmax(scores, -1), config.end_n_top)  # (B, K, M)
        mean_start = jnp.einsum("bs,bsd->bd", starts.astype(hidden.dtype), hidden)
        return {
            "start_top_log_probs": start_best,
            "start_top_index": start_index,
            "end_top_log_probs": end_best.swapaxes(1, 2).reshape(len(hidden), -1),
            "end_top_index": end_index.swapaxes(1, 2).reshape(len(hidden), -1),
            "cls_logits": scorers.answer_class(hidden, mean_start, cls_index),
        }


def _layers(output: Any) -> dict[str, Any]:
    """Return what every head hands on of the transformer's output."""
    return {"hidden_states": output.hidden_states, "attentions": output.attentions}
