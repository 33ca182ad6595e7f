"""Keys and values of past tokens: preallocated buffers, or plain tuples that grow.

Shapes: B batch, H heads, T past tokens, K head width, L buffer length.

``past_key_values`` is either a tuple with one ``(key, value)`` per layer, each (B, H, T, K)
(with cross-attention followed by the encoder's key and value), or a ``KeyValueCache``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from xlmfam.common.checks import check_cache, check_shape
from xlmfam.common.errors import XlmfamError
from xlmfam.flax.base import is_concrete


class LayerCache(NamedTuple):
    """The buffers of one layer, each (B * H, L, K), filled up to ``start``."""

    key: Array
    value: Array
    start: Array
    cross: tuple[Array, ...]

    def append(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Return the buffers with (B, H, S, K) written behind what is there."""
        return self._write(self.key, key), self._write(self.value, value)

    def _write(self, buffer: Array, new: Array) -> Array:
        new = new.reshape(-1, *new.shape[2:]).astype(buffer.dtype)
        return lax.dynamic_update_slice(buffer, new, (0, self.start, 0))


@struct.dataclass
class KeyValueCache:
    """Preallocated keys and values of every layer: a pytree; each call returns the next one.

    Under ``jax.jit`` with the cache donated, or in a ``lax`` loop, the buffers are written in
    place. Batch and heads are one axis, as the matrix products see them: with two axes XLA
    reshapes between writing and reading, and copies every buffer in every step for it.

    Attributes:
        keys: One (B * H, L, K) per layer.
        values: One (B * H, L, K) per layer.
        length: Number of tokens in it, a scalar array: it changes without compiling again.
        cross: Per layer nothing, or the encoder's key and value, each (B, H, E, K).
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    length: Array
    cross: tuple[tuple[Array, ...], ...]

    @classmethod
    def empty(
        cls,
        layers: int,
        batch: int,
        heads: int,
        max_length: int,
        head_width: int,
        dtype: Any = jnp.float32,
    ) -> KeyValueCache:
        """Return a cache with nothing in it; arguments as the shapes above."""
        shape = (batch * heads, max_length, head_width)
        # Separate buffers: one array under several names could not be donated.
        return cls(
            keys=tuple(jnp.zeros(shape, dtype) for _ in range(layers)),
            values=tuple(jnp.zeros(shape, dtype) for _ in range(layers)),
            length=jnp.zeros((), jnp.int32),
            cross=((),) * layers,
        )

    @classmethod
    def from_tuple(cls, past: tuple[tuple[Array, ...], ...], max_length: int) -> KeyValueCache:
        """Return a cache of length L that begins with the past given as plain tuples."""
        tokens = past[0][0].shape[2]

        def widen(x: Array) -> Array:
            # Pruning may have left layers with different numbers of heads.
            x = x.reshape(-1, tokens, x.shape[-1])
            return jnp.pad(x, ((0, 0), (0, max_length - tokens), (0, 0)))

        return cls(
            keys=tuple(widen(layer[0]) for layer in past),
            values=tuple(widen(layer[1]) for layer in past),
            length=jnp.asarray(tokens, jnp.int32),
            cross=tuple(layer[2:] for layer in past),
        )

    @property
    def max_length(self) -> int:
        """Most tokens that fit."""
        return self.keys[0].shape[-2]

    def layer(self, index: int) -> LayerCache:
        """Return the buffers of one layer."""
        return LayerCache(self.keys[index], self.values[index], self.length, self.cross[index])

    def advance(self, presents: list[tuple[Array, ...]], tokens: int) -> KeyValueCache:
        """Return the cache of buffers to which every layer has appended ``tokens``."""
        return KeyValueCache(
            keys=tuple(present[0] for present in presents),
            values=tuple(present[1] for present in presents),
            length=self.length + tokens,
            cross=tuple(present[2:] for present in presents),
        )

    def reorder(self, rows: Array) -> KeyValueCache:
        """Make row i what row ``rows[i]`` was, for beam search; ``rows`` is (B,)."""

        def take(x: Array) -> Array:
            return x.reshape(rows.shape[0], -1)[rows].reshape(x.shape)

        return self._map_rows(take, lambda x: x)

    def repeat(self, times: int, batch: int) -> KeyValueCache:
        """Repeat each of ``batch`` rows ``times`` times: one prompt, several continuations."""

        def repeat(x: Array) -> Array:
            rows = jnp.repeat(x.reshape(batch, -1), times, 0)
            return rows.reshape(-1, *x.shape[1:])

        return self._map_rows(repeat, lambda x: jnp.repeat(x, times, 0))

    def _map_rows(self, own: Any, cross: Any) -> KeyValueCache:
        return KeyValueCache(
            keys=tuple(own(key) for key in self.keys),
            values=tuple(own(value) for value in self.values),
            length=self.length,
            cross=tuple(tuple(cross(x) for x in pair) for pair in self.cross),
        )


def past_length(past_key_values: KeyValueCache | tuple | None) -> int | Array:
    """Return the number of past tokens, T; an array where a cache counts it."""
    if past_key_values is None:
        return 0
    if isinstance(past_key_values, KeyValueCache):
        return past_key_values.length
    return past_key_values[0][0].shape[2]


def check_mask(attention_mask: Any, past: Any, batch: int, length: int, heads: int) -> None:
    """Raise ``XlmfamError`` for an attention mask or a cache that ``length`` tokens do not fit."""
    if not isinstance(past, KeyValueCache):
        total = int(past_length(past)) + length
        check_shape("attention_mask", attention_mask, (batch, total))
        return
    check_shape("attention_mask", attention_mask, (batch, None))
    if attention_mask is not None and attention_mask.shape[1] > past.max_length:
        raise XlmfamError(
            f"attention_mask reaches {attention_mask.shape[1]} tokens, the cache {past.max_length}"
        )
    tokens = int(past.length) + length if is_concrete(past.length) else length
    check_cache(past.keys[0].shape[0] // heads, batch, past.max_length, tokens)
