"""Losses of the heads, and what belongs to them: targets, labelled positions.

Shapes: B batch, S sequence, D width, V classes or vocabulary, N labels that count.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from xlmfam.common.configs import PretrainedConfig

IGNORED = -100  # the label that does not count


def mean_loss(logits: Array, targets: Array) -> Array:
    """Mean cross entropy of logits (..., V) for targets (...); -100 does not count.

    Log-probabilities will do as logits: their softmax is what they are the logarithm of.
    """
    counted = targets != IGNORED
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, jnp.where(counted, targets, 0)[..., None], -1)[..., 0]
    losses = jax.nn.logsumexp(logits, -1) - chosen
    return jnp.sum(jnp.where(counted, losses, 0.0)) / jnp.sum(counted)


def shift_labels(labels: Array) -> Array:
    """Return (B, S): what each position is to predict when it predicts the next label."""
    return jnp.pad(jnp.asarray(labels)[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)


def causal_lm_loss(logits: Array, labels: Array) -> Array:
    """Mean cross entropy of predicting the next label; -100 does not count.

    Args:
        logits: (B, S, V).
        labels: (B, S).
    """
    # Moving the labels costs B * S; cutting the last position off the logits copies B * S * V.
    return mean_loss(logits, shift_labels(labels))


def labelled(hidden: Array, targets: Any, room: int) -> tuple[Array, Array]:
    """Return the states and targets of the positions that have a label.

    Args:
        hidden: (B, T, D).
        targets: (B, T).
        room: N.

    Returns:
        (N, D), NaN when there are more labels than that; and (N,), -100 beyond the labels.
    """
    targets = jnp.asarray(targets).reshape(-1)
    counts = targets != IGNORED
    index = jnp.nonzero(counts, size=room, fill_value=0)[0]
    there = jnp.arange(room) < counts.sum()
    states = hidden.reshape(-1, hidden.shape[-1])[index]
    too_many = jnp.where(counts.sum() > room, jnp.nan, 0.0).astype(states.dtype)
    return states + too_many, jnp.where(there, targets[index], IGNORED)


def problem_type(config: PretrainedConfig, labels: Any) -> str:
    """Return the kind of problem that the config or the labels say."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    several = jnp.issubdtype(labels.dtype, jnp.floating)
    return "multi_label_classification" if several else "single_label_classification"


def classification_loss(config: PretrainedConfig, logits: Array, labels: Any) -> Array:
    """Return the loss of (B, num_labels) logits, of the kind that the config or the labels say."""
    kind = problem_type(config, labels)
    if kind == "single_label_classification":
        return mean_loss(logits, jnp.asarray(labels).reshape(-1).astype(jnp.int32))
    if kind == "regression":
        truth = jnp.asarray(labels).astype(jnp.float32).reshape(logits.shape)
        return jnp.mean(jnp.square(logits.astype(jnp.float32) - truth))
    return binary_loss(logits, labels)


def binary_loss(logits: Array, truth: Array) -> Array:
    """Return the mean binary cross entropy of logits for truths between 0 and 1."""
    logits, truth = logits.astype(jnp.float32), jnp.asarray(truth).astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(logits) - logits * truth)


def within(positions: Any, length: int) -> Array:
    """Return (B,) targets: a position outside the text does not count, a negative one is 0."""
    positions = jnp.maximum(jnp.asarray(positions), 0)
    return jnp.where(positions >= length, IGNORED, positions)
