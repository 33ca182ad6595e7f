"""The memory of Transformer-XL as keys and values: each token is projected once (inference).

Shapes: B batch, S new tokens, M memory, T = M + S keys, H heads, K head width, R slots of a ring,
N distances.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from xlmfam.common.errors import XlmfamError

# Keys and values (B, H, T, K), and the distances (H, N, K) that they were looked at with.
Projections = tuple[Array, Array, Array]


@struct.dataclass
class Blank:
    """A memory of zeros: one stands for all of them.

    Attributes:
        length: M.
    """

    length: int = struct.field(pytree_node=False)


@struct.dataclass
class LayerMemory:
    """The memory of one layer.

    Attributes:
        key: (B * H, R, K).
        value: (B * H, R, K).
        vectors: (H, N, K), see ``ProjectedMemory``.
        at: The slot of the next token.
        length: M, how many of them count as memory.
    """

    key: Array
    value: Array
    vectors: Array
    at: Array
    length: int = struct.field(pytree_node=False)

    def append(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Return the rings with one token, (B, H, 1, K), in place of the oldest."""
        return self._write(self.key, key), self._write(self.value, value)

    def _write(self, ring: Array, new: Array) -> Array:
        new = new.reshape(-1, *new.shape[2:]).astype(ring.dtype)
        return lax.dynamic_update_slice(ring, new, (0, self.at, 0))

    def unroll(self, heads: int) -> tuple[Array, Array]:
        """Return keys and values (B, H, M, K), the oldest first."""

        def one(ring: Array) -> Array:
            _, slots, width = ring.shape
            ordered = jnp.roll(ring, -self.at, 1)[:, slots - self.length :]
            return ordered.reshape(-1, heads, self.length, width)

        return one(self.key), one(self.value)

    def by_slot(self, scores: Array) -> Array:
        """Return scores (B, H, 1, R) by slot of (B, H, 1, N) by distance, after ``append``."""
        slots = self.key.shape[1]
        return jnp.roll(far_ones(scores, 3, slots), self.at + 1, 3)


@struct.dataclass
class ProjectedMemory:
    """Keys, values and projected distances of every layer: a pytree; each call returns the next.

    The last tokens stand in a ring, where a new one takes the place of the oldest: in a ``lax``
    loop, or with the memory donated, nothing moves. Scores by distance are turned to where the
    ring stands, which is one row of numbers and not one of vectors. Batch and heads are one axis,
    see ``KeyValueCache``.

    Attributes:
        keys: One (B * H, R, K) per layer.
        values: One (B * H, R, K) per layer.
        vectors: One (H, N, K) per layer: projected sinusoids of the distances N - 1 to 0.
        at: The slot of the next token, the same in every row.
        known: (B,) tokens that each row remembers; may be more than there are slots.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    vectors: tuple[Array, ...]
    at: Array
    known: Array

    @classmethod
    def of(cls, layers: list[Projections], slots: int, known: Array) -> ProjectedMemory:
        """Return a memory that begins with what was projected.

        Args:
            layers: Of every layer; the last keys are the newest.
            slots: R.
            known: (B,).
        """
        tokens = min(layers[0][0].shape[2], slots)

        def ring(x: Array) -> Array:
            x = x[:, :, x.shape[2] - tokens :].reshape(-1, tokens, x.shape[-1])
            return jnp.pad(x, ((0, 0), (0, slots - tokens), (0, 0)))

        return cls(
            keys=tuple(ring(key) for key, _, _ in layers),
            values=tuple(ring(value) for _, value, _ in layers),
            vectors=tuple(vectors for _, _, vectors in layers),
            at=jnp.asarray(tokens % slots, jnp.int32),
            known=known.astype(jnp.int32),
        )

    @property
    def slots(self) -> int:
        """R, number of tokens that it has room for."""
        return self.keys[0].shape[1]

    @property
    def rows(self) -> int:
        """B."""
        return self.known.shape[0]

    def layer(self, index: int, length: int) -> LayerMemory:
        """Return what one layer remembers, M tokens of it."""
        return LayerMemory(
            self.keys[index], self.values[index], self.vectors[index], self.at, length
        )

    def advance(self, layers: list[Projections]) -> ProjectedMemory:
        """Return the memory of rings to which every layer has appended a token."""
        return ProjectedMemory(
            keys=tuple(key for key, _, _ in layers),
            values=tuple(value for _, value, _ in layers),
            vectors=self.vectors,
            at=(self.at + 1) % self.slots,
            known=self.known + 1,
        )

    def reorder(self, rows: Array) -> ProjectedMemory:
        """Make row i what row ``rows[i]`` was, for beam search; ``rows`` is (B,)."""

        def take(x: Array) -> Array:
            return x.reshape(self.rows, -1)[rows].reshape(x.shape)

        return self._each(take, self.known[rows])

    def repeat(self, times: int, batch: int) -> ProjectedMemory:
        """Repeat each of ``batch`` rows ``times`` times: one prompt, several continuations."""

        def repeat(x: Array) -> Array:
            return jnp.repeat(x.reshape(batch, -1), times, 0).reshape(-1, *x.shape[1:])

        return self._each(repeat, jnp.repeat(self.known, times, 0))

    def _each(self, change: Any, known: Array) -> ProjectedMemory:
        return self.replace(  # type: ignore[attr-defined]
            keys=tuple(change(key) for key in self.keys),
            values=tuple(change(value) for value in self.values),
            known=known,
        )


def far_ones(values: Array, axis: int, count: int) -> Array:
    """Return what stands for ``count`` distances on an axis that has them from far to near.

    Where there are fewer, distances are clamped: farther ones are as the farthest that is there.
    """
    more = count - values.shape[axis]
    if more <= 0:
        return lax.slice_in_dim(values, -more, values.shape[axis], axis=axis)
    widths = [(0, 0)] * values.ndim
    widths[axis] = (more, 0)
    return jnp.pad(values, widths, mode="edge")


@jax.custom_jvp
def without_gradient(ring: Array, kernel: Array) -> Array:  # noqa: ARG001 - the rule looks at it
    """Return keys or values; refuses to be differentiated by what they were projected with."""
    return ring


@without_gradient.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise XlmfamError(
        "a memory of keys and values has no gradients: give the mems that a call returned"
    )
