"""The linen modules of Transformer-XL: relative attention, feed-forward, layer.

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, N distances.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.flax.attention import attend, merge_heads, split_heads
from xlmfam.flax.transfo_xl_clusters import normal
from xlmfam.flax.transfo_xl_memory import (
    Blank,
    LayerMemory,
    Projections,
    far_ones,
    without_gradient,
)


class Distances(NamedTuple):
    """What attention needs to know of positions, made once per call.

    Attributes:
        vectors: (N, D) sinusoids of the distances N - 1 to 0, as many as differ; ``None`` where
            the memory has them projected.
        allowed: Which keys each query may see, broadcastable to (B, H, S, T).
        shift: (B, T) places in memory and text that each key is at, where padding on the left
            moves the memory, or ``None``.
    """

    vectors: Array | None
    allowed: Array
    shift: Array | None


def sinusoids(distances: Array, width: int, dtype: Any) -> Array:
    """Return (N, D): sines of all frequencies, then cosines (Vaswani et al. 2017, section 3.5)."""
    half = jnp.arange(0, width, 2, dtype=jnp.float32)
    angles = distances[:, None].astype(jnp.float32) * 10000.0 ** (-half / width)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).astype(dtype)


def by_key(scores: Array, keys: int) -> Array:
    """Return (B, H, S, T) scores by key of (B, H, S, T + 1) scores by distance.

    Query i stands ``S - 1 - i`` distances further on in its row than the last query does in its
    own. As rows are one longer than there are keys, that is a reshape (appendix B of the paper).
    """
    batch, heads, queries, _ = scores.shape
    flat = scores.reshape(batch, heads, -1)[..., queries - 1 : queries - 1 + queries * keys]
    return flat.reshape(batch, heads, queries, keys)


class Linear(nn.Module):
    """A linear layer without bias.

    Attributes:
        inputs: Width of what comes in.
        outputs: Width of what goes out.
        std: Of the initial weight.
        dtype: Of the computation.
    """

    inputs: int
    outputs: int
    std: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the weight."""
        self.kernel = self.param("kernel", normal(self.std), (self.inputs, self.outputs))

    def __call__(self, hidden: Array, first: int = 0) -> Array:
        """Return the outputs from ``first`` on."""
        return hidden @ self.kernel[:, first:].astype(self.dtype)


def norm(config: TransfoXLConfig, dtype: Any) -> nn.LayerNorm:
    """Return a layer norm."""
    return nn.LayerNorm(epsilon=config.layer_norm_epsilon, dtype=dtype, use_fast_variance=False)


class AttentionBiases(NamedTuple):
    """What queries have added to them, (H, K) each: for content, and for distance."""

    content: Array
    distance: Array


def attention_biases(module: nn.Module, config: TransfoXLConfig) -> AttentionBiases:
    """Return the biases as parameters of a module."""
    shape, init = (config.n_head, config.d_head), normal(config.init_std)
    return AttentionBiases(*(module.param(n, init, shape) for n in ("r_w_bias", "r_r_bias")))


class RelativeAttention(nn.Module):
    """Attention by content and distance, with its residual and norm (section 3.3 of the paper).

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build biases, projections and norm."""
        config, dtype = self.config, self.dtype
        width, inner = config.d_model, config.n_head * config.d_head
        if config.untie_r:
            self.biases = attention_biases(self, config)
        self.qkv_net = Linear(width, 3 * inner, config.init_std, dtype)
        self.o_net = Linear(inner, width, config.init_std, dtype)
        self.r_net = Linear(width, inner, config.init_std, dtype)
        self.layer_norm = norm(config, dtype)
        self.drop = nn.Dropout(config.dropout)

    def __call__(
        self,
        hidden: Array,
        memory: Array | Blank | LayerMemory,
        distances: Distances,
        biases: AttentionBiases | None = None,
        head_mask: Array | None = None,
        need_weights: bool = False,
        deterministic: bool = True,
    ) -> tuple[Array, Array | None, Projections]:
        """Attend to the memory and to ``hidden`` itself.

        Args:
            hidden: (B, S, D).
            memory: (B, M, D), zeros, or keys and values.
            distances: Of this call.
            biases: Shared by the layers, where they have none of their own.
            head_mask: (H,) factors of attention weights.
            need_weights: Return them.
            deterministic: Drop nothing.

        Returns:
            (B, S, D); weights (B, H, S, T) or ``None``; what the next call may remember.
        """
        if self.config.untie_r:
            biases = self.biases
        assert biases is not None
        content, distance = (bias.astype(self.dtype)[:, None] for bias in biases)
        query, key, value = self._project(hidden)
        vectors = self._vectors(memory, distances)
        scores = self._by_distance(query + distance, vectors)
        if is_step(memory, distances, hidden):
            assert isinstance(memory, LayerMemory)
            key, value = self._guarded(memory).append(key, value)
            scores = memory.by_slot(scores)
        else:
            key, value = self._behind(memory, key, value, distances.shift)
            scores = by_key(_for_keys(scores, key.shape[2]), key.shape[2])
        rate = 0.0 if deterministic else self.config.dropatt
        mixed, weights = attend(
            query + content,
            key,
            value,
            distances.allowed,
            dropout=rate,
            dropout_rng=self.make_rng("dropout") if rate else None,
            head_mask=head_mask,
            need_weights=need_weights,
            scores_bias=scores,
        )
        out = self.drop(self.o_net(merge_heads(mixed)), deterministic)
        pre_norm = self.config.pre_lnorm
        return (
            hidden + out if pre_norm else self.layer_norm(hidden + out),
            weights,
            (
                key,
                value,
                vectors,
            ),
        )

    def keys_and_values(self, memory: Array) -> tuple[Array, Array]:
        """Return keys and values (B, H, M, K) of (B, M, D)."""
        inner = self.config.n_head * self.config.d_head
        both = self.qkv_net(self._normed(memory), inner)
        key, value = (split_heads(x, self.config.n_head) for x in jnp.split(both, 2, -1))
        return key, value

    def project_distances(self, vectors: Array) -> Array:
        """Return (H, N, K) of sinusoids (N, D)."""
        heads = self.config.n_head
        return self.r_net(vectors).reshape(len(vectors), heads, -1).swapaxes(0, 1)

    def _project(self, hidden: Array) -> list[Array]:
        """Return queries, keys and values (B, H, S, K) of the text."""
        every = self.qkv_net(self._normed(hidden))
        return [split_heads(x, self.config.n_head) for x in jnp.split(every, 3, -1)]

    def _normed(self, hidden: Array) -> Array:
        return self.layer_norm(hidden) if self.config.pre_lnorm else hidden

    def _vectors(self, memory: Any, distances: Distances) -> Array:
        if distances.vectors is None:
            return memory.vectors
        return self.project_distances(distances.vectors)

    def _by_distance(self, query: Array, vectors: Array) -> Array:
        """Return scores (B, H, S, N) of queries (B, H, S, K) by projected distances (H, N, K)."""
        query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        return jnp.einsum("bhsk,hnk->bhsn", query, vectors, preferred_element_type=jnp.float32)

    def _behind(
        self, memory: Any, key: Array, value: Array, shift: Array | None
    ) -> tuple[Array, Array]:
        """Return keys and values (B, H, T, K) of memory and text, (B, H, S, K)."""
        if isinstance(memory, LayerMemory):
            old = self._guarded(memory).unroll(key.shape[1])
        elif isinstance(memory, Blank):
            old = self._blank(memory, key)
        else:
            old = self.keys_and_values(memory)
        both = (jnp.concatenate(pair, 2) for pair in zip(old, (key, value), strict=True))
        if shift is not None:
            places = shift[:, None, :, None]
            both = (jnp.take_along_axis(x, places, 2) for x in both)
        key, value = both
        return key, value

    def _blank(self, memory: Blank, like: Array) -> tuple[Array, Array]:
        zero = jnp.zeros((1, 1, self.config.d_model), self.dtype)
        shape = (*like.shape[:2], memory.length, like.shape[3])
        key, value = self.keys_and_values(zero)
        return jnp.broadcast_to(key, shape), jnp.broadcast_to(value, shape)

    def _guarded(self, memory: LayerMemory) -> LayerMemory:
        kernel = self.qkv_net.kernel
        key, value = (without_gradient(x, kernel) for x in (memory.key, memory.value))
        return memory.replace(key=key, value=value)  # type: ignore[attr-defined]


def is_step(memory: Any, distances: Distances, hidden: Array) -> bool:
    """Whether one token per row comes to keys and values that stay where they are."""
    is_projected = isinstance(memory, LayerMemory)
    return is_projected and hidden.shape[1] == 1 and distances.shift is None


def _for_keys(scores: Array, keys: int) -> Array:
    """Return (B, H, S, T + 1) of scores (B, H, S, N) by distance; nobody reads the last."""
    return jnp.pad(far_ones(scores, 3, keys), ((0, 0), (0, 0), (0, 0), (0, 1)))


class CoreNet(nn.Module):
    """Two linear layers with a rectifier between them.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Array, deterministic: bool = True) -> Array:
        """Return (B, S, D) of (B, S, D)."""
        config, init = self.config, normal(self.config.init_std)
        inner = nn.Dense(config.d_inner, dtype=self.dtype, kernel_init=init, name="0")(hidden)
        inner = nn.Dropout(config.dropout)(jax.nn.relu(inner), deterministic)
        out = nn.Dense(config.d_model, dtype=self.dtype, kernel_init=init, name="3")(inner)
        return nn.Dropout(config.dropout)(out, deterministic)


class FeedForward(nn.Module):
    """Two linear layers by position, with their residual and norm.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the layers and the norm."""
        self.CoreNet = CoreNet(self.config, self.dtype)
        self.layer_norm = norm(self.config, self.dtype)

    def __call__(self, hidden: Array, deterministic: bool = True) -> Array:
        """Return (B, S, D) of (B, S, D)."""
        if self.config.pre_lnorm:
            return hidden + self.CoreNet(self.layer_norm(hidden), deterministic)
        return self.layer_norm(hidden + self.CoreNet(hidden, deterministic))


class TransfoXLLayer(nn.Module):
    """One layer: relative attention, feed-forward.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build both blocks."""
        self.dec_attn = RelativeAttention(self.config, self.dtype)
        self.pos_ff = FeedForward(self.config, self.dtype)

    def __call__(
        self,
        hidden: Array,
        memory: Array | Blank | LayerMemory,
        distances: Distances,
        biases: AttentionBiases | None = None,
        head_mask: Array | None = None,
        need_weights: bool = False,
        deterministic: bool = True,
    ) -> tuple[Array, Array | None, Projections]:
        """Run the layer; see ``RelativeAttention``."""
        hidden, weights, projections = self.dec_attn(
            hidden, memory, distances, biases, head_mask, need_weights, deterministic
        )
        return self.pos_ff(hidden, deterministic), weights, projections

    def remember(self, memory: Array, vectors: Array) -> Projections:
        """Return keys and values (B, H, M, K) of (B, M, D), and (H, N, K) of (N, D)."""
        attention = self.dec_attn
        return (*attention.keys_and_values(memory), attention.project_distances(vectors))
