"""The losses of XLM's heads in TensorFlow: one per sample, their mean is PyTorch's loss.

Shapes: B batch, S sequence, C choices.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from xlmfam.common.checks import check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.tf.attention import Tensor, sizes
from xlmfam.tf.layers import IGNORED, spread, token_losses


def classification_losses(
    config: XLMConfig, logits: Tensor, labels: Tensor, none: float = float("nan")
) -> Tensor:
    """Return the (B,) losses of (B, num_labels) logits, of the kind that config or labels say.

    Args:
        config: The config.
        logits: (B, num_labels).
        labels: See ``XLMForSequenceClassification.call``.
        none: The mean where no label counts.

    Raises:
        XlmfamError: When the labels do not fit.
    """
    kind = config.problem_type
    if kind is None:
        several = labels.dtype.is_floating
        kind = "multi_label_classification" if several else "single_label_classification"
        kind = "regression" if config.num_labels == 1 else kind
    batch, width = logits.shape
    if kind == "single_label_classification":
        return choice_losses(logits, column("labels", labels, batch), none)
    logits = tf.cast(logits, tf.float32)
    if kind == "regression":
        check_shape("labels", labels, (batch, width), *([(batch,)] if width == 1 else []))
        labels = tf.reshape(tf.cast(labels, tf.float32), [-1, width])
        return tf.reduce_mean(tf.square(logits - labels), -1)
    check_shape("labels", labels, (batch, width))
    labels = tf.cast(labels, tf.float32)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits), -1)


def choice_losses(logits: Tensor, labels: Tensor, none: float = float("nan")) -> Tensor:
    """Return the (B,) cross entropies of (B, C) logits; a label of -100 does not count."""
    labels = tf.cast(labels, tf.int32)
    return spread(token_losses(logits, labels), labels != IGNORED, none)


def span_losses(name: str, logits: Tensor, positions: Tensor, none: float = float("nan")) -> Tensor:
    """Return the (B,) losses of one end of the answers; see ``XLMForQuestionAnsweringSimple``.

    Args:
        name: Of the positions.
        logits: (B, S).
        positions: (B,) or (B, 1).
        none: The mean where no position counts.
    """
    positions = tf.cast(column(name, positions, logits.shape[0]), tf.int32)
    return choice_losses(logits, within(positions, sizes(logits)[1]), none)


def weighted_mean(losses: Tensor, weights: Any) -> Tensor:
    """Return the mean of (B,) losses, each times its weight.

    Args:
        losses: (B,).
        weights: (B,), or ``None``. Of several labels Keras makes a dict, with the same for each;
            what differs is averaged.
    """
    if isinstance(weights, dict):
        weights = sum(weights.values()) / len(weights)
    if weights is not None:
        losses = losses * tf.reshape(tf.cast(weights, losses.dtype), [-1])
    return tf.reduce_mean(losses)


def within(positions: Tensor, length: Any) -> Tensor:
    """Return (B,) targets: a position outside the text does not count, a negative one is 0."""
    return tf.where(positions < length, tf.maximum(positions, 0), IGNORED)


def column(name: str, values: Tensor, batch: int | None) -> Tensor:
    """Return (B,) of (B,) or (B, 1)."""
    check_shape(name, values, (batch,), (batch, 1))
    return tf.reshape(values, [-1])
