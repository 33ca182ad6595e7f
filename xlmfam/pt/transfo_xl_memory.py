"""The memory of Transformer-XL as keys and values: each token is projected once (inference).

Shapes: B batch, S new tokens, M memory, T = M + S keys, H heads, K head width, D width, N rows of
a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlmfam.common.checks import check_shape
from xlmfam.common.errors import XlmfamError

SPARE = 256  # tokens that fit behind a memory before it is moved to the front


class ProjectedMemory:
    """Keys, values and projected distances of every layer.

    A window of the last M tokens moves through a buffer; at its end it is copied to the front.
    The projections of distances are the same in every step.

    Args:
        model: A ``TransfoXLModel``.
        batch: B.
        most: Most tokens of a single call.
    """

    def __init__(self, model: Any, batch: int, most: int):
        self.model = model
        self.capacity = model.mem_len
        self.length = model.mem_len
        self.is_used = False
        self.start = 0  # of the window in the buffers
        config = model.config
        self.rows = self.capacity + max(most, SPARE)
        shape = (batch, config.n_head, self.rows, config.d_head)
        self.keys = [_empty(shape, model) for _ in model.layers]
        self.values = [_empty(shape, model) for _ in model.layers]
        self.vectors: list[Tensor | None] = [None] * config.n_layer
        self._fill(None)

    @property
    def layers(self) -> list[LayerMemory]:
        """What each layer remembers."""
        return [LayerMemory(self, index) for index in range(len(self.keys))]

    def load(self, mems: Sequence[Tensor]) -> None:
        """Take over what a call returned, (M, B, D) for each layer.

        Raises:
            XlmfamError: When it does not fit.
        """
        layers, batch = len(self.keys), self.keys[0].shape[0]
        if len(mems) != layers:
            raise XlmfamError(f"mems must have one for each of {layers} layers, got {len(mems)}")
        for memory in mems:
            check_shape("a layer of mems", memory, (None, batch, self.model.config.d_model))
        self._fill([memory.transpose(0, 1)[:, -self.capacity :] for memory in mems])

    @torch.no_grad()
    def _fill(self, memories: list[Tensor] | None) -> None:
        """Project the memories (B, M, D); by default one zero, which serves for all."""
        width, batch = self.model.config.d_model, self.keys[0].shape[0]
        zero = _empty((1, 1, width), self.model).zero_()
        self.start = 0
        self.length = self.capacity if memories is None else memories[0].shape[1]
        for index, layer in enumerate(self.model.layers):
            memory = zero if memories is None else memories[index]
            _, key, value = layer.dec_attn.project(memory, None)
            shape = (batch, -1, self.length, -1)
            self.keys[index][:, :, : self.length] = key.expand(shape)
            self.values[index][:, :, : self.length] = value.expand(shape)

    def check(self, batch: int) -> None:
        """Raise ``XlmfamError`` for another number of rows."""
        rows = self.keys[0].shape[0]
        if rows != batch:
            raise XlmfamError(f"the memory in mems has {rows} rows, the inputs have {batch}")

    def make_room(self, tokens: int) -> None:
        """Move the window so that as many tokens fit behind it."""
        end = self.start + self.length
        if end + tokens <= self.rows:
            return
        needed = max(self.rows, self.length + tokens)
        for buffers in (self.keys, self.values):
            for index, old in enumerate(buffers):
                window = old[:, :, self.start : end]
                new = old if needed == self.rows and self.start >= self.length else None
                if new is None:
                    new = old.new_empty((*old.shape[:2], needed, old.shape[3]))
                new[:, :, : self.length] = window
                buffers[index] = new
        self.start, self.rows = 0, needed

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has appended; forget what is too old."""
        every = self.length + tokens
        self.length = min(every, self.capacity)
        self.start += every - self.length
        self.is_used = True

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, for beam search; ``rows`` is (B,)."""
        self._each(lambda buffer: buffer.index_select(0, rows))

    def repeat(self, times: int) -> None:
        """Repeat every row: one prompt, several continuations."""
        self._each(lambda buffer: buffer.repeat_interleave(times, 0))

    def _each(self, change: Any) -> None:
        self.keys = [change(buffer) for buffer in self.keys]
        self.values = [change(buffer) for buffer in self.values]


class LayerMemory(NamedTuple):
    """The memory of one layer.

    Attributes:
        whole: The memory of all.
        number: Of the layer.
    """

    whole: ProjectedMemory
    number: int

    def append(self, key: Tensor, value: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write (B, H, S, K) behind the window; return views (B, H, T, K) of it all.

        Args:
            key: Of what is new.
            value: Of what is new.
            shift: (B, T) places to move to, see ``Distances``.
        """
        whole, new = self.whole, key.shape[2]
        whole.make_room(new)
        begin, end = whole.start, whole.start + whole.length + new
        views = []
        for buffers, added in ((whole.keys, key), (whole.values, value)):
            buffer = buffers[self.number]
            buffer[:, :, end - new : end] = added
            view = buffer[:, :, begin:end]
            if shift is not None:
                places = shift[:, None, :, None].expand_as(view)
                view.copy_(view.gather(2, places))
            views.append(view)
        return views[0], views[1]

    def project_distances(self, attention: Any, vectors: Tensor) -> Tensor:
        """Return (H, N, K) of the sinusoids (N, D), projected once for all calls."""
        known = self.whole.vectors[self.number]
        if known is None or known.shape[1] < len(vectors):
            known = attention.project_distances(vectors).contiguous()
            self.whole.vectors[self.number] = known
        return known[:, known.shape[1] - len(vectors) :]


def _empty(shape: tuple[int, ...], model: Any) -> Tensor:
    return torch.empty(shape, dtype=model.dtype, device=model.device)
