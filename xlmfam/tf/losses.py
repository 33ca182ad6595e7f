"""Losses of the heads, and what belongs to them: targets, choices, labelled positions.

A loss is one per sample or per label; their mean is PyTorch's loss.

Shapes: B batch, S sequence, C choices, D width, V classes or vocabulary, N labels that count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from xlmfam.common.checks import check_shape
from xlmfam.common.configs import PretrainedConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import resolve_langs
from xlmfam.common.outputs import ModelOutput
from xlmfam.tf.attention import Tensor, sizes
from xlmfam.tf.checks import check_labels, is_cheap
from xlmfam.tf.layers import (
    IGNORED,
    label_losses,
    label_weights,
    mean_label_loss,
    shifted,
    spread,
    token_losses,
)
from xlmfam.tf.training import main_output

# Among the inputs of a training step: the loss projects by itself, where there are labels.
STATES_ONLY = "states_only"


class LabelledLogitsMixin:
    """Lets ``fit`` and ``evaluate`` project only where there are labels.

    Stands before the other bases of a model that has ``states`` and ``project``.
    """

    labelled_logits_only: bool | int = True
    shifts_labels: Any = False  # whether a position predicts the next label rather than its own
    project: Callable[[Tensor], Tensor]  # logits (..., V) of (..., D)

    def states(self, **arguments: Any) -> Any:
        """Run what stands below the projection."""
        raise NotImplementedError

    def targets(self, labels: Tensor) -> Tensor:
        """Return (B, S): what each position is to predict."""
        return shifted(labels) if self.shifts_labels else labels

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; the first argument may be a dict or a list of the arguments."""
        if args and isinstance(args[0], dict) and STATES_ONLY in args[0]:
            inputs = {name: value for name, value in args[0].items() if name != STATES_ONLY}
            return self.states(**self._arguments((inputs,), kwargs))  # type: ignore[attr-defined]
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def loss_inputs(self, x: dict[str, Any], y: Any) -> dict[str, Any]:
        """Return the arguments, marked where nobody but the loss looks at logits."""
        has_metrics = self._compile_metrics is not None  # type: ignore[attr-defined]
        own = self.uses_own_loss and not has_metrics  # type: ignore[attr-defined]
        if not own or not self.labelled_logits_only or y is None:
            return x
        return {**x, STATES_ONLY: True}

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the labels."""
        targets = self.targets(tf.convert_to_tensor(labels))
        weights = label_weights(weights, is_shifted=self.shifts_labels)
        if not (isinstance(output, ModelOutput) and "last_hidden_state" in output):
            return mean_label_loss(main_output(output), targets, weights)
        states, room = output.last_hidden_state, self.labelled_logits_only
        if room is True and self.jit_compile:  # type: ignore[attr-defined]
            # No shapes that depend on values.
            return mean_label_loss(self.project(states), targets, weights)
        chosen, wanted, index = labelled(states, targets, room)
        if weights is not None:
            weights = tf.broadcast_to(weights, tf.shape(targets))
            weights = tf.gather(tf.reshape(weights, [-1]), index)
        return mean_label_loss(self.project(chosen), wanted, weights)


def labelled(hidden: Tensor, targets: Tensor, room: bool | int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states and targets of the positions that have a label, and their numbers.

    Args:
        hidden: (B, T, D).
        targets: (B, T).
        room: N, or ``True`` for as many as there are.

    Returns:
        (N, D); (N,), -100 beyond the labels; and (N,), of B * T positions in a row.
    """
    flat = tf.reshape(targets, [-1])
    states = tf.reshape(hidden, [-1, sizes(hidden)[-1]])
    counts = flat != IGNORED
    if room is True:
        index = tf.where(counts)[:, 0]
        return tf.gather(states, index), tf.gather(flat, index), index
    number = tf.reduce_sum(tf.cast(counts, tf.int32))
    if is_cheap(targets) and int(number) > room:
        raise XlmfamError(f"labelled_logits_only={room}, and there are {int(number)} labels")
    first = tf.argsort(tf.cast(~counts, tf.int32), stable=True)[:room]
    # A batch may have fewer positions than there is room.
    index = tf.reshape(tf.pad(first, [[0, room - tf.size(first)]]), [room])
    wanted = tf.where(tf.range(room) < number, tf.gather(flat, index), IGNORED)
    too_many = tf.where(number > room, float("nan"), 0.0)
    return tf.gather(states, index) + tf.cast(too_many, states.dtype), wanted, index


def labelled_losses(logits: Tensor, targets: Tensor, room: bool | int) -> Tensor:
    """Return (N,) losses of the targets that count; see ``labelled``."""
    if room is False or room is True:
        return label_losses(logits, targets)
    return spread(token_losses(logits, targets), targets != IGNORED)


def classification_losses(
    config: PretrainedConfig, logits: Tensor, labels: Tensor, none: float = float("nan")
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
        labels = column("labels", labels, batch)
        check_labels(labels, width)
        return choice_losses(logits, labels, none)
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
    """Return the (B,) losses of one end of the answers; see ``XLMForQuestionAnsweringSimple.call``.

    Args:
        name: Of the positions.
        logits: (B, S).
        positions: (B,) or (B, 1).
        none: The mean where no position counts.
    """
    positions = tf.cast(column(name, positions, logits.shape[0]), tf.int32)
    return choice_losses(logits, within(positions, sizes(logits)[1]), none)


def choice_langs(config: PretrainedConfig, langs: Any, given: Tensor) -> Any:
    """Return the languages of (B, C, S) texts for B * C rows.

    Args:
        config: The config.
        langs: A name or id, one per sample, one per choice (B, C), or (B, C, S) ids.
        given: (B, C, S) ids, or (B, C, S, D).
    """
    langs = resolve_langs(config, langs)
    if langs is None:
        return None
    langs = tf.convert_to_tensor(langs)
    if len(langs.shape) == 3:
        return flat(langs)
    batch, choices = given.shape[:2]
    check_shape("langs", langs, (batch, choices), (batch, 1), (1, 1))
    if langs.shape == (1, 1):  # one for everything
        return langs
    return tf.reshape(tf.broadcast_to(langs, sizes(given)[:2]), [-1, 1])


def flat(values: Tensor | None) -> Tensor | None:
    """Return (B * C, ...) of (B, C, ...)."""
    return None if values is None else tf.reshape(values, [-1, *sizes(values)[2:]])


def needs_all(labels: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a dict of labels; raise ``XlmfamError`` unless all names are in it."""
    missing = [name for name in names if not isinstance(labels, dict) or labels.get(name) is None]
    if missing:
        raise XlmfamError(f"the loss needs {' and '.join(missing)} too")
    return labels


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
