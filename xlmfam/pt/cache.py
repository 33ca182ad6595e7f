"""Keys and values of past tokens: preallocated buffers, or plain tuples that grow.

Shapes: B batch, H heads, T past tokens, K head width, L buffer length.

``past_key_values`` is either a tuple with one ``(key, value)`` per layer, each (B, H, T, K)
(with cross-attention followed by the encoder's key and value), or a ``KeyValueCache``.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """The buffers of one layer, filled from ``start`` on."""

    def __init__(self, key: Tensor, value: Tensor, start: int, cross: list[Tensor]):
        self.key = key
        self.value = value
        self.start = start
        self.cross = cross

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, S, K) behind what is there; return views (B, H, T + S, K) of it all."""
        end = self.start + key.shape[2]
        if end > self.key.shape[2]:
            raise ValueError(f"the cache holds {self.key.shape[2]} tokens, {end} are needed")
        self.key[:, :, self.start : end] = key
        self.value[:, :, self.start : end] = value
        return self.key[:, :, :end], self.value[:, :, :end]


class KeyValueCache:
    """Preallocated keys and values of every layer, filled in place.

    Args:
        layers: Number of layers.
        batch: B.
        heads: H.
        max_length: L, most tokens to hold.
        head_width: K.
        dtype: Of the buffers.
        device: Of the buffers.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        max_length: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        shape = (batch, heads, max_length, head_width)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.cross: list[list[Tensor]] = [[] for _ in range(layers)]
        self.length = 0
        self._spare: tuple[Tensor, Tensor] | None = None

    @property
    def max_length(self) -> int:
        """Most tokens that fit."""
        return self.keys[0].shape[2]

    def layer(self, index: int) -> LayerCache:
        """Return the buffers of one layer."""
        return LayerCache(self.keys[index], self.values[index], self.length, self.cross[index])

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` that every layer has appended."""
        self.length += tokens

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, for beam search; ``rows`` is (B,)."""
        if self._spare is None:
            self._spare = (torch.empty_like(self.keys[0]), torch.empty_like(self.values[0]))
        for index in range(len(self.keys)):
            old = self.keys[index], self.values[index]
            self.keys[index] = torch.index_select(old[0], 0, rows, out=self._spare[0])
            self.values[index] = torch.index_select(old[1], 0, rows, out=self._spare[1])
            self._spare = old  # the buffers just read are the next to write

    def repeat(self, times: int) -> None:
        """Repeat every row ``times`` times: one prompt, several continuations."""
        for index in range(len(self.keys)):
            self.keys[index] = self.keys[index].repeat_interleave(times, 0)
            self.values[index] = self.values[index].repeat_interleave(times, 0)
            self.cross[index] = [t.repeat_interleave(times, 0) for t in self.cross[index]]
        self._spare = None


def past_length(past_key_values: KeyValueCache | tuple | None) -> int:
    """Return the number of past tokens, T."""
    if past_key_values is None:
        return 0
    if isinstance(past_key_values, KeyValueCache):
        return past_key_values.length
    return past_key_values[0][0].shape[2]
