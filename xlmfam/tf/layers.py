"""Small pieces that several families share: layers, activations, positions, losses.

The layers hold no shapes: the model creates their variables from the parameter table.

Shapes: B batch, S sequence, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from xlmfam.common.positions import halves_frequencies
from xlmfam.tf.attention import Tensor, sizes

IGNORED = -100  # the label that does not count
RNG = "philox"  # the same numbers with XLA and without


class TableLayer(keras.layers.Layer):
    """A layer whose variables the model creates, from the table."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._allow_non_tensor_positional_args = True
        self.built = True


class Linear(TableLayer):
    """Multiplies by ``kernel`` (in, out) and adds ``bias`` (out,) where there is one."""

    kernel: Any = None
    bias: Any = None

    def call(self, inputs: Tensor) -> Tensor:
        """Return (..., out) for (..., in)."""
        *rows, _ = sizes(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        # As one matrix product: with more dimensions the kernel would be broadcast.
        result = tf.matmul(tf.reshape(inputs, [-1, kernel.shape[0]]), kernel)
        if self.bias is not None:
            result = tf.nn.bias_add(result, tf.convert_to_tensor(self.bias))
        return tf.reshape(result, [*rows, kernel.shape[1]])


class LayerNorm(TableLayer):
    """Layer normalisation (Ba et al. 2016) with statistics in float32.

    Args:
        epsilon: Added to the variance.
        **kwargs: Of the layer.
    """

    gamma: Any = None
    beta: Any = None

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, inputs: Tensor) -> Tensor:
        """Return the normalised (..., D)."""
        wide = tf.cast(inputs, tf.float32)
        centred = wide - tf.reduce_mean(wide, -1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
        result = centred * tf.math.rsqrt(variance + self.epsilon)
        result = result * tf.cast(self.gamma, tf.float32) + tf.cast(self.beta, tf.float32)
        return tf.cast(result, inputs.dtype)


class Embedding(TableLayer):
    """Rows of ``embeddings`` (V, D)."""

    embeddings: Any = None

    def call(self, token_ids: Tensor) -> Tensor:
        """Return (B, S, D) for (B, S) ids; only what is looked up is cast."""
        rows = look_up(tf.convert_to_tensor(self.embeddings), token_ids)
        return tf.cast(rows, self.compute_dtype)

    def attend(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) for hidden states (..., D)."""
        *rows, width = sizes(hidden)
        table = tf.cast(self.embeddings, hidden.dtype)
        logits = tf.matmul(tf.reshape(hidden, [-1, width]), table, transpose_b=True)
        return tf.reshape(logits, [*rows, table.shape[0]])


@tf.custom_gradient
def look_up(table: Tensor, token_ids: Tensor):
    """Return the rows (..., D) of (V, D) that ``token_ids`` (...) name.

    The gradient has one row for each of the table. TensorFlow's own lists the rows looked up, and
    Keras's Adam squares those of a token that comes twice one by one, which is wrong.
    """

    def gradient(upstream):
        values = tf.reshape(upstream, [-1, table.shape[1]])
        rows = tf.reshape(token_ids, [-1])
        return tf.math.unsorted_segment_sum(values, rows, table.shape[0]), None

    return tf.gather(table, token_ids), gradient


def hold_padding(vectors: Tensor, token_ids: Tensor, padding_idx: int | None) -> Tensor:
    """Return (B, S, D) vectors that pass no gradient to the embedding of padding.

    PyTorch's ``padding_idx``: what padding is embedded as is not learned.
    """
    if padding_idx is None:
        return vectors
    is_padding = tf.equal(token_ids, tf.cast(padding_idx, token_ids.dtype))[..., None]
    return tf.where(is_padding, tf.stop_gradient(vectors), vectors)


def _gelu_tanh(x: Tensor) -> Tensor:
    return tf.nn.gelu(x, approximate=True)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": tf.nn.gelu,
    "gelu_10": lambda x: tf.clip_by_value(tf.nn.gelu(x), -10, 10),
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": tf.nn.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.01),
    "linear": lambda x: x,
    "mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
    "relu": tf.nn.relu,
    "relu2": lambda x: tf.square(tf.nn.relu(x)),
    "relu6": tf.nn.relu6,
    "sigmoid": tf.sigmoid,
    "silu": tf.nn.silu,
    "swish": tf.nn.silu,
    "tanh": tf.tanh,
}


def fold_in(seed: Tensor, data: Any) -> Tensor:
    """Return (2,) integers made from others and a number."""
    return tf.random.experimental.stateless_fold_in(seed, data, RNG)


def uniform(shape: Any, seed: Tensor) -> Tensor:
    """Return numbers strictly between 0 and 1, float32, from (2,) integers.

    Made from random bits, since XLA and TensorFlow make different floats of the same bits.
    """
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.int32, alg=RNG)
    low = tf.cast(tf.bitwise.bitwise_and(bits, 0x7FFFFF), tf.float32)
    return (low + 0.5) / 0x800000


class Dropper:
    """Dropouts of one place in the model, from one seed: the same whenever they are computed.

    Recomputing a layer for its gradient therefore drops the same values again.

    Args:
        seed: (2,) integers, or ``None`` outside of training.
    """

    def __init__(self, seed: Tensor | None):
        self.seed = seed
        self.used = 0

    def next_seed(self) -> Tensor:
        """Return (2,) integers of their own for the next use."""
        self.used += 1
        return fold_in(self.seed, self.used)

    def inner(self) -> Dropper:
        """Return a dropper for a layer inside."""
        return Dropper(None if self.seed is None else self.next_seed())

    def drop(self, values: Tensor, rate: float) -> Tensor:
        """Zero a fraction ``rate`` of the values in training and scale up the others."""
        if self.seed is None or not rate:
            return values
        kept = uniform(tf.shape(values), self.next_seed()) >= rate
        scale = tf.cast(0.0 if rate == 1.0 else 1.0 / (1.0 - rate), values.dtype)
        return tf.where(kept, values * scale, tf.zeros([], values.dtype))

    def skip(self, before: Tensor, after: Tensor, rate: float) -> Tensor:
        """LayerDrop (Fan et al. 2019): in training take ``before`` with probability ``rate``."""
        if self.seed is None or not rate:
            return after
        return tf.where(uniform([], self.next_seed()) < rate, before, after)


def random_seed(seeds: keras.random.SeedGenerator) -> Tensor:
    """Return (2,) non-negative integers, other ones at every call."""
    return tf.cast(tf.bitwise.bitwise_and(seeds.next(), tf.int32.max), tf.int32)


def recomputed(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """Return ``function(*tensors)``; what it holds inside is computed again for the gradient.

    Args:
        function: Returns a structure of tensors and ``None``.
        *tensors: What gradients pass through besides variables; ``None`` stays ``None``.
    """
    found: list[Any] = []

    @tf.recompute_grad
    def run(*given):
        rest = iter(given)
        results = function(*(None if t is None else next(rest) for t in tensors))
        found[:] = [results]
        return [tensor for tensor in tf.nest.flatten(results) if tensor is not None]

    flat = iter(run(*(tensor for tensor in tensors if tensor is not None)))
    ordered = [None if t is None else next(flat) for t in tf.nest.flatten(found[0])]
    return tf.nest.pack_sequence_as(found[0], ordered)


def sinusoidal_positions(
    position_ids: Tensor, width: int, offset: int, padding_idx: int | None, dtype: Any
) -> Tensor:
    """Return sine half, then cosine half, of any position; nothing is stored or learned.

    Args:
        position_ids: (B, S).
        width: D.
        offset: Added to every position.
        padding_idx: The position (offset included) whose vector is zero.
        dtype: Of the result; computed in float32.

    Returns:
        (B, S, D).
    """
    rows = position_ids + tf.cast(offset, position_ids.dtype)
    angles = tf.cast(rows, tf.float32)[..., None] * tf.constant(halves_frequencies(width))
    vectors = tf.concat([tf.sin(angles), tf.cos(angles)], -1)
    if width % 2:
        vectors = tf.pad(vectors, [[0, 0], [0, 0], [0, 1]])
    if padding_idx is not None:
        vectors = tf.where((rows == padding_idx)[..., None], 0.0, vectors)
    return tf.cast(vectors, dtype)


def text_positions(attention_mask: Tensor | None, start: Tensor, length: Tensor) -> Tensor:
    """Return positions that count from each row's first token.

    Leading padding is subtracted, so a left-padded row has the positions it has alone, and a
    right-padded row keeps its own.

    Args:
        attention_mask: (B, start + length) or ``None``.
        start: Number of tokens before.
        length: S.

    Returns:
        (B or 1, S).
    """
    positions = (start + tf.range(length))[None]
    if attention_mask is None:
        return positions
    leading = tf.argmax(tf.cast(attention_mask, tf.int32), -1, output_type=tf.int32)
    return tf.maximum(positions - leading[:, None], 0)


def shifted(labels: Tensor) -> Tensor:
    """Return (B, S): what each position has to predict, ``IGNORED`` at the last."""
    return tf.pad(labels[:, 1:], [[0, 0], [0, 1]], constant_values=IGNORED)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the (B, S) cross entropies in float32; those of ignored targets mean nothing."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.maximum(targets, 0), tf.cast(logits, tf.float32)
    )


def without_ignored(labels: Tensor) -> Tensor:
    """Return labels with an id, 0, where one does not count."""
    return tf.where(labels == tf.cast(IGNORED, labels.dtype), tf.zeros_like(labels), labels)


def label_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropies of the n targets that count, (n,).

    Args:
        logits: (..., V).
        targets: (...), what each position has to predict.
    """
    return tf.boolean_mask(token_losses(logits, targets), targets != IGNORED)


def mean_label_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of ``label_losses`` with static shapes throughout, as XLA needs.

    Args:
        logits: (..., V).
        targets: (...).
        weights: Factors of the losses; broadcast to their shape.
    """
    counts = tf.cast(targets != IGNORED, tf.float32)
    losses = token_losses(logits, targets) * counts
    if weights is not None:
        losses = losses * tf.cast(weights, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(counts))


def causal_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of predicting each next label, (n,) for the n that count.

    Args:
        logits: (B, S, V).
        labels: (B, S).
    """
    return label_losses(logits, shifted(labels))


def mean_causal_lm_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of ``causal_lm_loss`` with static shapes throughout, as XLA needs.

    Args:
        logits: (B, S, V).
        labels: (B, S).
        weights: (B,) or (B, S) factors of the labels' losses.
    """
    return mean_label_loss(logits, shifted(labels), label_weights(weights, is_shifted=True))


def label_weights(weights: Tensor | None, is_shifted: bool) -> Tensor | None:
    """Return (B, 1) or (B, S) factors, each where its label is predicted.

    Args:
        weights: (B,) or (B, S), or ``None``.
        is_shifted: Labels are predicted one position earlier than they stand.
    """
    if weights is None:
        return None
    if len(weights.shape) == 1:
        return weights[:, None]
    return tf.roll(weights, -1, 1) if is_shifted else weights


def spread(losses: Tensor, counts: Tensor, none: float = float("nan")) -> Tensor:
    """Return (B,) losses whose mean is the mean of those that count.

    Args:
        losses: (B,).
        counts: (B,) booleans.
        none: The mean where none counts.
    """
    number = tf.reduce_sum(tf.cast(counts, losses.dtype))
    size = tf.cast(tf.size(losses), losses.dtype)
    kept = tf.where(counts, losses, tf.zeros_like(losses))
    return tf.where(number > 0, kept * size / tf.maximum(number, 1), none)
