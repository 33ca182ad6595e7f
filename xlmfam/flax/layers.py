"""Small pieces that several families share: activations, sinusoidal positions, numbered modules.

Shapes: B batch, S sequence, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from xlmfam.common.positions import halves_frequencies


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu_10(x: Array) -> Array:
    return jnp.clip(_gelu(x), -10, 10)


_gelu = partial(jax.nn.gelu, approximate=False)
_gelu_tanh = partial(jax.nn.gelu, approximate=True)

ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_10": _gelu_10,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Numbered(nn.Module):
    """Modules whose names are numbers.

    Attributes:
        make: Makes the module of a number.
        count: How many there are.
    """

    make: Callable[[int], nn.Module]
    count: int

    def setup(self) -> None:
        """Build them."""
        for index in range(self.count):
            setattr(self, str(index), self.make(index))

    def __getitem__(self, index: int) -> Any:
        """Return one of them."""
        return getattr(self, str(index))


def hold_padding(vectors: Array, token_ids: Array, padding_idx: int | None) -> Array:
    """Return (B, S, D) vectors that pass no gradient to the embedding of padding.

    PyTorch's ``padding_idx``: what padding is embedded as is not learned.
    """
    if padding_idx is None:
        return vectors
    is_padding = (token_ids == padding_idx)[..., None]
    return jnp.where(is_padding, jax.lax.stop_gradient(vectors), vectors)


def sinusoidal_positions(
    position_ids: Array,
    width: int,
    offset: int = 0,
    padding_idx: int | None = None,
    dtype: Any = jnp.float32,
) -> Array:
    """Sine half, then cosine half, of any position; nothing is stored or learned.

    Args:
        position_ids: (B, S).
        width: D.
        offset: Added to every position.
        padding_idx: The position (offset included) whose vector is zero.
        dtype: Of the result; computed in float32.

    Returns:
        (B, S, D).
    """
    rows = position_ids + offset
    angles = rows[..., None].astype(jnp.float32) * halves_frequencies(width)
    vectors = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    if width % 2:
        vectors = jnp.pad(vectors, ((0, 0), (0, 0), (0, 1)))
    if padding_idx is not None:
        vectors = jnp.where((rows == padding_idx)[..., None], 0.0, vectors)
    return vectors.astype(dtype)


def text_positions(attention_mask: Array | None, start: int | Array, length: int) -> Array:
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
    positions = (start + jnp.arange(length))[None]
    if attention_mask is None:
        return positions
    leading = jnp.argmax(jnp.asarray(attention_mask) != 0, axis=-1, keepdims=True)
    return jnp.maximum(positions - leading, 0)
