"""The demo's training: small models with Keras ``fit``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Size:
    """How large the demo is.

    Attributes:
        groups: Groups of the corpus to train on; ``None`` is all.
        pieces: Most pieces of the tokenizer.
        width: Width of the model.
        layers: Number of layers.
        heads: Number of attention heads.
        batch: Sentences per step.
        epochs: Times through the text.
        rate: Highest learning rate.
        goal: Mean training loss that counts as learned, in nats per token.
        sampled: Sentences that the trained model is to complete.
    """

    groups: int | None
    pieces: int
    width: int
    layers: int
    heads: int
    batch: int
    epochs: int
    rate: float
    goal: float
    sampled: int


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: The Keras model.
        losses: Training loss of every step.
        final: Mean loss over the whole text after training.
    """

    model: Any
    losses: list[float]
    final: float


def train(model: Any, data: Any, size: Size, lean: bool = False) -> Trained:
    """Train a model with ``compile()`` and ``fit``, on its own loss.

    Args:
        model: The Keras model.
        data: Its batches, see `batches_of`.
        size: How long to train.
        lean: Treat all variables alike: their decay and clipping one by one takes long to build
            for many small ones, as adapters are.
    """
    optimizer = optimizer_of(size, size.epochs * int(data.cardinality()), lean)
    # Batches differ in length, and XLA would compile anew for each.
    model.compile(optimizer=optimizer, jit_compile=False)
    recorder = loss_recorder()
    model.fit(
        data,
        epochs=size.epochs,
        callbacks=[recorder],
        # A moving bar where somebody watches, a line per epoch elsewhere.
        verbose=1 if sys.stdout.isatty() else 2,
    )
    final = model.evaluate(data, verbose=0, return_dict=True)["loss"]
    return Trained(model, recorder.losses, float(final))


def optimizer_of(size: Size, steps: int, lean: bool) -> Any:
    """Return Adam with a rate that rises and falls.

    Args:
        size: Has the highest rate.
        steps: How many there will be.
        lean: See `train`.
    """
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, alpha=0.02, warmup_target=size.rate, warmup_steps=max(1, steps // 12)
    )
    if lean:
        return keras.optimizers.Adam(schedule, beta_2=0.98, global_clipnorm=1.0)
    return keras.optimizers.AdamW(schedule, beta_2=0.98, weight_decay=0.01, clipnorm=1.0)


def batches_of(
    rows: Sequence[Sequence[int]],
    batch: int,
    make: Callable[[list[int], np.random.Generator], Batch],
    seed: int,
) -> Any:
    """Return a ``tf.data.Dataset`` of batches of about equal lengths, new ones in every epoch.

    Args:
        rows: The ids of every sentence.
        batch: Sentences in a batch.
        make: Makes a batch of some rows, by their numbers.
        seed: Of shuffling.
    """
    import tensorflow as tf

    rng = np.random.default_rng(seed)

    def epoch() -> Iterator[Batch]:
        order = sorted(rng.permutation(len(rows)).tolist(), key=lambda index: len(rows[index]))
        for start in rng.permutation(range(0, len(rows), batch)):
            yield make(order[start : start + batch], rng)

    example = make([0], np.random.default_rng(seed))
    signature = {
        name: tf.TensorSpec([None] * value.ndim, tf.int64, name) for name, value in example.items()
    }
    data = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    count = math.ceil(len(rows) / batch)
    return data.apply(tf.data.experimental.assert_cardinality(count))


def loss_recorder() -> Any:
    """Return a Keras callback that keeps the loss of every step in ``losses``."""
    import keras

    class LossRecorder(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []
            self._sum = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            self._sum = 0.0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            # Keras tells the mean since the epoch began.
            total = float(logs["loss"]) * (batch + 1)
            self.losses.append(total - self._sum)
            self._sum = total

    return LossRecorder()
