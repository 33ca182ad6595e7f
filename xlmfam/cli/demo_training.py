"""The demo's training: a small XGLM with Keras ``fit``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlmfam.cli.demo_text import padded


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
        sampled: Sentences whose second half is asked for after training.
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


FULL = Size(None, 2000, 128, 3, 4, 64, 20, 4e-3, 1.0, 130)
QUICK = Size(10, 700, 64, 2, 4, 26, 30, 8e-3, 1.0, 26)


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


def make_config(size: Size, tokenizer: Any, longest: int) -> Any:
    """Return the config of the demo's model."""
    from xlmfam import XGLMConfig

    return XGLMConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max(64, 2 * longest),
        d_model=size.width,
        ffn_dim=4 * size.width,
        num_layers=size.layers,
        attention_heads=size.heads,
        # A text this small is to be learned by heart, so nothing is dropped.
        dropout=0.0,
        attention_dropout=0.0,
        init_std=size.width**-0.5 / 2,
    )


def train(config: Any, rows: Sequence[Sequence[int]], size: Size, seed: int) -> Trained:
    """Train a model with ``compile()`` and ``fit``, on its own loss.

    Args:
        config: Of the model.
        rows: The ids of every sentence.
        size: How long to train.
        seed: Of initial values and shuffling.
    """
    import keras

    from xlmfam.tf import XGLMForCausalLM

    keras.utils.set_random_seed(seed)
    model = XGLMForCausalLM.from_config(config)
    data = batches_of(rows, size.batch, config.pad_token_id, seed)
    steps = size.epochs * math.ceil(len(rows) / size.batch)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, alpha=0.02, warmup_target=size.rate, warmup_steps=max(1, steps // 12)
    )
    optimizer = keras.optimizers.AdamW(schedule, beta_2=0.98, weight_decay=0.01, clipnorm=1.0)
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


def batches_of(rows: Sequence[Sequence[int]], batch: int, pad: int, seed: int) -> Any:
    """Return a ``tf.data.Dataset`` of batches of about equal lengths, new ones in every epoch.

    Args:
        rows: The ids of every sentence.
        batch: Sentences in a batch.
        pad: The id of padding.
        seed: Of shuffling.
    """
    import tensorflow as tf

    rng = np.random.default_rng(seed)

    def epoch() -> Iterator[dict[str, np.ndarray]]:
        order = sorted(rng.permutation(len(rows)), key=lambda index: len(rows[index]))
        for start in rng.permutation(range(0, len(rows), batch)):
            yield padded([rows[index] for index in order[start : start + batch]], pad)

    names = padded([rows[0]], pad)
    signature = {name: tf.TensorSpec((None, None), tf.int64, name) for name in names}
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
