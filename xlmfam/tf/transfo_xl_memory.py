"""The memory of Transformer-XL as keys and values: each token is projected once (inference).

Shapes: B batch, S new tokens, M memory, R slots of the ring, U distances that differ, H heads,
K head width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from xlmfam.common.errors import XlmfamError
from xlmfam.tf.attention import Tensor, sizes
from xlmfam.tf.cache import repeat


class ProjectedMemory(NamedTuple):
    """Keys, values and projected distances of every layer.

    A ring: new tokens are written over the oldest, and nothing is ever moved. A call returns a
    new one; in a graph the old buffers are written in place. It is a structure of tensors, so
    that it passes through ``tf.function`` and ``tf.while_loop``.

    Attributes:
        keys: One (B, H, R, K) per layer, with R - M slots for the tokens of a call.
        values: One (B, H, R, K) per layer.
        vectors: One (H, U, K) per layer: the distances U - 1 to 0; what is further away counts as
            the first. The same in every step.
        slot: Where the next token goes, a scalar.
        length: How many tokens are remembered, a scalar.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]
    slot: Tensor
    length: Tensor

    @property
    def slots(self) -> int:
        """R."""
        return self.keys[0].shape[2]

    def check(self, batch: int | None, tokens: int | None, capacity: int) -> None:
        """Raise ``XlmfamError`` for another number of rows, and for more tokens than have room.

        Args:
            batch: B of the inputs, where known.
            tokens: S, where known.
            capacity: M.
        """
        rows, room = self.keys[0].shape[0], self.slots - capacity
        if rows is not None and batch is not None and rows != batch:
            raise XlmfamError(f"the memory in mems has {rows} rows, the inputs have {batch}")
        if tokens is not None and tokens > room:
            raise XlmfamError(
                f"the memory in mems has room for {max(room, 0)} tokens in a call, {tokens} came: "
                "say so in init_cache(..., max_length=...)"
            )

    def layer(self, index: int) -> LayerMemory:
        """Return what one layer remembers."""
        return LayerMemory(self.keys[index], self.values[index], self.vectors[index])

    def after(self, presents: Sequence[tuple[Tensor, Tensor]], tokens: Any, capacity: int):
        """Return the memory with ``tokens`` more; what is too old is forgotten.

        Args:
            presents: What each layer has made of its buffers.
            tokens: S.
            capacity: M.
        """
        return self._replace(
            keys=tuple(present[0] for present in presents),
            values=tuple(present[1] for present in presents),
            slot=(self.slot + tokens) % self.slots,
            length=tf.minimum(self.length + tokens, capacity),
        )

    def reorder(self, rows: Tensor) -> ProjectedMemory:
        """Return a memory whose row i is row ``rows[i]``, for beam search; ``rows`` is (B,)."""
        return self._each(lambda buffer: tf.gather(buffer, rows))

    def repeat(self, times: int) -> ProjectedMemory:
        """Return a memory with every row repeated: one prompt, several continuations."""
        return self._each(lambda buffer: repeat(buffer, times))

    def _each(self, change: Any) -> ProjectedMemory:
        return self._replace(
            keys=tuple(change(buffer) for buffer in self.keys),
            values=tuple(change(buffer) for buffer in self.values),
        )


class LayerMemory(NamedTuple):
    """The memory of one layer, see ``ProjectedMemory``."""

    key: Tensor
    value: Tensor
    vectors: Tensor

    def append(self, key: Tensor, value: Tensor, ring: Ring) -> tuple[Tensor, Tensor]:
        """Return the buffers (B, H, R, K) with (B, H, S, K) written over the oldest.

        Args:
            key: Of what is new.
            value: Of what is new.
            ring: Where things stand.
        """
        pairs = (self.key, without_gradients(key)), (self.value, without_gradients(value))
        written = [write(buffer, new, ring.written) for buffer, new in pairs]
        if ring.moved is not None:
            written = [tf.gather(buffer, ring.moved, batch_dims=1, axis=2) for buffer in written]
        return written[0], written[1]


class Ring(NamedTuple):
    """Where things stand in a ring once a call has written into it.

    Attributes:
        written: (S,) slots of the new tokens.
        turn: How many slots the oldest stands from slot 0, a scalar.
        moved: (B, R) slots that each slot is filled from, where padding on the left moves the
            memory, or ``None``.
    """

    written: Tensor
    turn: Tensor
    moved: Tensor | None = None

    def by_slot(self, values: Tensor) -> Tensor:
        """Return (..., R) by slot of what goes from the oldest to the newest."""
        return tf.roll(values, self.turn, -1)


def write(buffer: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """Return (B, H, R, K) with ``values`` (B, H, S, K) in some slots, (S,)."""
    batch, heads, length, width = sizes(buffer)
    # One row of K values per index: the scatter forwards its input, so nothing else is copied.
    first = tf.range(batch * heads)[:, None] * length
    index = tf.reshape(first + slots[None], [-1, 1])
    flat = tf.reshape(buffer, [batch * heads * length, width])
    rows = tf.reshape(tf.cast(values, buffer.dtype), [-1, width])
    return tf.reshape(tf.tensor_scatter_nd_update(flat, index, rows), [batch, heads, length, width])


def pack(values: Tensor, capacity: int, room: int) -> Tensor:
    """Return buffers (B, H, M + room, K) of the last of (B, H, T, K); the next slot is M."""
    kept = values[:, :, max(values.shape[2] - capacity, 0) :]
    return tf.pad(kept, [[0, 0], [0, 0], [capacity - kept.shape[2], room], [0, 0]])


@tf.custom_gradient
def without_gradients(values: Tensor):
    """Return what is given; raise ``XlmfamError`` where a gradient is asked for.

    It would be wrong: the tokens in the memory were projected by calls that are over.
    """

    def refuse(_upstream):
        raise XlmfamError(
            "a memory of keys and values has no gradients: give the mems that a call returned"
        )

    return tf.identity(values), refuse
