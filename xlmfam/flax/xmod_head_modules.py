"""The linen modules of X-MOD's heads for classification and question answering.

Shapes: B batch, S sequence, C choices, D width.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.flax.losses import classification_loss, mean_loss, within
from xlmfam.flax.outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from xlmfam.flax.xmod_modules import dense
from xlmfam.flax.xmod_transformer import XmodModule


class XmodHeadModule(nn.Module):
    """What the heads' modules share: X-MOD itself, and the dropout before a classifier.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XmodConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    pools = False  # whether X-MOD has its pooling layer

    def setup(self) -> None:
        """Build X-MOD and the head."""
        config, remat = self.config, self.gradient_checkpointing
        self.roberta = XmodModule(config, self.dtype, remat, self.pools)
        rate = config.classifier_dropout
        self.drop = nn.Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.build()

    def build(self) -> None:
        """Build the head."""
        raise NotImplementedError


class XmodClassificationHead(nn.Module):
    """Classifies a text by its first position.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the layers."""
        self.dense = dense(self.config, self.config.hidden_size, self.dtype)
        self.out_proj = dense(self.config, self.config.num_labels, self.dtype)


class XmodForSequenceClassificationModule(XmodHeadModule):
    """X-MOD with a classifier or regressor of texts, as a linen module."""

    def build(self) -> None:
        """Build the head."""
        self.classifier = XmodClassificationHead(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Run the module; the wrapper checks and prepares what comes here."""
        output = self.roberta(input_ids, deterministic=deterministic, **kwargs)
        hidden = self.drop(output.last_hidden_state[:, 0], deterministic)
        hidden = self.drop(jnp.tanh(self.classifier.dense(hidden)), deterministic)
        logits = self.classifier.out_proj(hidden)
        loss = None if labels is None else classification_loss(self.config, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, **_layers(output))


class XmodForMultipleChoiceModule(XmodHeadModule):
    """X-MOD that scores each of several texts, as a linen module."""

    pools = True

    def build(self) -> None:
        """Build the head."""
        self.classifier = dense(self.config, 1, self.dtype)
        self.drop_pooled = nn.Dropout(self.config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        choices: int = 1,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """Run the module on B * C rows; the wrapper checks and prepares what comes here."""
        output = self.roberta(input_ids, deterministic=deterministic, **kwargs)
        pooled = self.drop_pooled(output.pooler_output, deterministic)
        logits = self.classifier(pooled).reshape(-1, choices)
        loss = None if labels is None else mean_loss(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, **_layers(output))


class XmodForTokenClassificationModule(XmodHeadModule):
    """X-MOD with a classifier of tokens, as a linen module."""

    def build(self) -> None:
        """Build the head."""
        self.classifier = dense(self.config, self.config.num_labels, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Run the module; the wrapper checks and prepares what comes here."""
        output = self.roberta(input_ids, deterministic=deterministic, **kwargs)
        logits = self.classifier(self.drop(output.last_hidden_state, deterministic))
        loss = None if labels is None else mean_loss(logits, labels)
        return TokenClassifierOutput(loss=loss, logits=logits, **_layers(output))


class XmodForQuestionAnsweringModule(XmodHeadModule):
    """X-MOD that scores each token as start and as end of the answer, as a linen module."""

    def build(self) -> None:
        """Build the head."""
        self.qa_outputs = dense(self.config, self.config.num_labels, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        start_positions: Array | None = None,
        end_positions: Array | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Run the module; the wrapper checks and prepares what comes here."""
        output = self.roberta(input_ids, **kwargs)
        logits = self.qa_outputs(output.last_hidden_state)
        start, end = logits[..., 0], logits[..., 1]
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start.shape[1]
            start_loss = mean_loss(start, within(start_positions, length))
            loss = (start_loss + mean_loss(end, within(end_positions, length))) / 2
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, **_layers(output)
        )


def _layers(output: Any) -> dict[str, Any]:
    """Return what every head hands on of X-MOD's output."""
    return {"hidden_states": output.hidden_states, "attentions": output.attentions}
