"""Small pieces that several families share: activations, sinusoidal positions, losses.

Shapes: B batch, S sequence, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.positions import halves_frequencies


def embedding(rows: int, width: int, padding_idx: int | None = None) -> nn.Embedding:
    """Return a plain ``nn.Embedding`` whose initial values are left to the parameter table.

    Drawing them here as well would, on the meta device where checkpoints are loaded, import
    torch's compiler: three seconds for values that nobody sees.
    """
    return nn.Embedding(rows, width, padding_idx, _weight=torch.empty(rows, width))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_10(x: Tensor) -> Tensor:
    return F.gelu(x).clamp(-10, 10)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_10": _gelu_10,
    "gelu_accurate": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
    "mish": F.mish,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


class SinusoidalPositions(nn.Module):
    """Sine half, then cosine half, of any position; nothing is stored or learned.

    Args:
        width: D.
        offset: Added to every position.
        padding_idx: The position (offset included) whose vector is zero.
    """

    def __init__(self, width: int, offset: int = 0, padding_idx: int | None = None):
        super().__init__()
        self.width = width
        self.offset = offset
        self.padding_idx = padding_idx
        # Not a buffer: models are built on the meta device, and this is needed as numbers.
        self._frequencies = torch.tensor(halves_frequencies(width), device="cpu")

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (B, S, D) of ``dtype`` for (B, S) positions; computed in float32."""
        rows = position_ids + self.offset
        angles = rows[..., None].float() * self._frequencies.to(position_ids.device)
        vectors = torch.cat([angles.sin(), angles.cos()], dim=-1)
        if self.width % 2:
            vectors = F.pad(vectors, (0, 1))
        if self.padding_idx is not None:
            vectors = vectors.masked_fill((rows == self.padding_idx)[..., None], 0.0)
        return vectors.to(dtype)


def text_positions(attention_mask: Tensor | None, start: int, length: int, device) -> Tensor:
    """Return positions that count from each row's first token.

    Leading padding is subtracted, so a left-padded row has the positions it has alone, and a
    right-padded row keeps its own.

    Args:
        attention_mask: (B, start + length) or ``None``.
        start: Number of tokens before.
        length: S.
        device: Of the result.

    Returns:
        (B or 1, S).
    """
    positions = torch.arange(start, start + length, device=device)[None]
    if attention_mask is None:
        return positions
    leading = attention_mask.to(torch.int32).argmax(-1, keepdim=True)
    return (positions - leading.to(device)).clamp(min=0)


def causal_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of predicting the next label; -100 does not count.

    Args:
        logits: (B, S, V).
        labels: (B, S).
    """
    # Moving the labels costs B * S; cutting the last position off the logits copies B * S * V.
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(
        logits.float().flatten(0, 1), targets.to(logits.device, torch.long).flatten()
    )
