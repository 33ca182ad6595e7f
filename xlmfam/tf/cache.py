"""Keys and values of past tokens: preallocated buffers, or plain tuples that grow.

Shapes: B batch, H heads, T past tokens, S new tokens, K head width, L buffer length.

``past_key_values`` is either a tuple with one ``(key, value)`` per layer, each (B, H, T, K)
(with cross-attention followed by the encoder's key and value), or a ``KeyValueCache``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from xlmfam.tf.attention import Tensor, sizes


class KeyValueCache(NamedTuple):
    """Preallocated keys and values of every layer.

    A call returns a new one with the tokens added. In a graph the old buffers are written in
    place; in eager mode they stay as they were. It is a structure of tensors, so that it passes
    through ``tf.function`` and ``tf.while_loop``.

    Attributes:
        keys: One (B, H, L, K) per layer.
        values: One (B, H, L, K) per layer.
        length: How many tokens are held, a scalar.
        cross: The encoder's (key, value) per layer, once known.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    length: Tensor
    cross: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def max_length(self) -> int:
        """Most tokens that fit."""
        return self.keys[0].shape[2]

    def layer(self, index: int) -> LayerCache:
        """Return the buffers of one layer."""
        cross = self.cross[index] if self.cross else ()
        return LayerCache(self.keys[index], self.values[index], self.length, cross)

    def after(self, presents: Sequence[tuple[Tensor, ...]], tokens: Any) -> KeyValueCache:
        """Return the cache that holds ``tokens`` more.

        Args:
            presents: What each layer has made of its buffers: key and value, and those of the
                encoder where there is one.
            tokens: How many were added.
        """
        return KeyValueCache(
            tuple(present[0] for present in presents),
            tuple(present[1] for present in presents),
            self.length + tokens,
            tuple(present[2:] for present in presents if present[2:]) or self.cross,
        )

    def reorder(self, rows: Tensor) -> KeyValueCache:
        """Return a cache whose row i is row ``rows[i]``, for beam search; ``rows`` is (B,).

        The encoder's part is left as it is: rows only move within their own prompt.
        """

        def take(buffers):
            return tuple(tf.gather(buffer, rows) for buffer in buffers)

        return self._replace(keys=take(self.keys), values=take(self.values))


class DictCache:
    """Carries a caller's dict to where it is filled; Keras would hand on a copy of a bare one.

    Args:
        values: The dict, see ``xlmfam.common.dict_cache``.
    """

    def __init__(self, values: dict[Any, Any]):
        self.values = values


class LayerCache(NamedTuple):
    """The buffers of one layer, filled up to ``length``."""

    key: Tensor
    value: Tensor
    length: Tensor
    cross: tuple[Tensor, ...]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the buffers (B, H, L, K) with (B, H, S, K) written behind what is there."""
        return write(self.key, key, self.length), write(self.value, value, self.length)


def write(buffer: Tensor, values: Tensor, start: Tensor) -> Tensor:
    """Return (B, H, L, K) with ``values`` (B, H, S, K) written from ``start`` on."""
    batch, heads, length, width = sizes(buffer)
    new = sizes(values)[2]
    # One row of K values per index: the scatter forwards its input, so nothing else is copied.
    first = tf.range(batch * heads)[:, None] * length + start
    index = tf.reshape(first + tf.range(new)[None], [-1, 1])
    flat = tf.reshape(buffer, [batch * heads * length, width])
    rows = tf.reshape(tf.cast(values, buffer.dtype), [-1, width])
    written = tf.tensor_scatter_nd_update(flat, index, rows)
    return tf.reshape(written, [batch, heads, length, width])


def empty_cache(
    layers: int, batch: int, heads: int, max_length: int, head_width: int, dtype: Any
) -> KeyValueCache:
    """Return a cache with room for ``max_length`` tokens and none in it."""
    shape = (batch, heads, max_length, head_width)
    keys = tuple(tf.zeros(shape, dtype) for _ in range(layers))
    values = tuple(tf.zeros(shape, dtype) for _ in range(layers))
    return KeyValueCache(keys, values, tf.constant(0))


def cache_from_past(past: tuple, max_length: int, times: int = 1) -> KeyValueCache:
    """Return a cache that holds the tuples ``past``, every row ``times`` times.

    Args:
        past: One tuple per layer, see the module.
        max_length: L.
        times: Continuations per row.
    """
    length = past[0][0].shape[2]

    def room(values):
        return repeat(tf.pad(values, [[0, 0], [0, 0], [0, max_length - length], [0, 0]]), times)

    return KeyValueCache(
        tuple(room(layer[0]) for layer in past),
        tuple(room(layer[1]) for layer in past),
        tf.constant(length),
        tuple((repeat(layer[2], times), repeat(layer[3], times)) for layer in past if layer[2:]),
    )


def repeat(values: Tensor, times: int) -> Tensor:
    """Repeat every row ``times`` times: one prompt, several continuations."""
    return values if times == 1 else tf.repeat(values, times, axis=0)


def past_length(past_key_values: KeyValueCache | tuple | None) -> Any:
    """Return the number of past tokens, T: a number where known, else a scalar."""
    if past_key_values is None:
        return 0
    if isinstance(past_key_values, KeyValueCache):
        return past_key_values.length
    return sizes(past_key_values[0][0])[2]
