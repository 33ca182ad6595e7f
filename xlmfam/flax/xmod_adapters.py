"""X-MOD's language adapters in Flax: which of them a batch needs, and sending it through.

Shapes: B batch, S sequence, D width, A adapter width, P languages that may occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from flax.linen.dtypes import promote_dtype
from jax import Array, lax

from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.flax.layers import ACTIVATION_FUNCTIONS

Weights = tuple[Array, Array, Array, Array]  # kernels and biases of an adapter's two layers


@struct.dataclass
class Languages:
    """Which adapter each part of a batch goes through, worked out once per call.

    A pytree whose codes are static: a function compiles once for each set of languages, and not
    for how they are spread over a batch, unless it is grouped.

    Attributes:
        present: Codes of the P languages that may occur; one is that of everything.
        ids: (B, 1) or (B, S) places in ``present``; ``None`` where there is one language, or
            groups say it.
        order: (B or B * S,) samples, or tokens, by language.
        inverse: (B or B * S,) where each of them stands in ``order``.
        sizes: How many of each language there are.
        by_token: The groups are of tokens rather than of samples.
    """

    present: tuple[str, ...] = struct.field(pytree_node=False)
    ids: Any = None
    order: Any = None
    inverse: Any = None
    sizes: tuple[int, ...] = struct.field(pytree_node=False, default=())
    by_token: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, ids: Any, codes: Sequence[str]) -> Languages:
        """Return those of (B, 1) or (B, S) ids; what is traced may be any of ``codes``."""
        if isinstance(ids, jax.core.Tracer):
            return cls(tuple(codes), None if len(codes) == 1 else ids)
        present, places = np.unique(ids, return_inverse=True)
        named = tuple(codes[number] for number in present)
        return cls(named, None if len(named) == 1 else places.reshape(ids.shape).astype(np.int32))

    def grouped(self) -> Languages:
        """Return them with groups, where the ids are known."""
        if self.ids is None or isinstance(self.ids, jax.core.Tracer):
            return self
        rows = self.ids.reshape(-1)
        order = np.argsort(rows, kind="stable")
        sizes = tuple(np.bincount(rows, minlength=len(self.present)).tolist())
        by_token = self.ids.shape[1] > 1
        return Languages(self.present, None, order, np.argsort(order), sizes, by_token)

    def columns(self, first: Any, length: int) -> Languages:
        """Return those of ``length`` tokens from ``first`` on."""
        if self.ids is None or self.ids.shape[1] == 1:
            return self
        return Languages(self.present, lax.dynamic_slice_in_dim(self.ids, first, length, 1))

    def continued(self, tokens: int) -> Languages:
        """Return them with as many tokens more, each like the last of its row."""
        if self.ids is None or self.ids.shape[1] == 1:
            return self
        ids = jnp.pad(jnp.asarray(self.ids), ((0, 0), (0, tokens)), mode="edge")
        return Languages(self.present, ids)


class Affine(nn.Module):
    """The parameters of a linear layer, for whoever multiplies with several at once.

    Attributes:
        config: The config.
        sizes: Width of what comes and of what goes.
    """

    config: XmodConfig
    sizes: tuple[int, int]

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Return the kernel and the bias."""
        init = nn.initializers.normal(self.config.initializer_range)
        kernel = self.param("kernel", init, self.sizes)
        return kernel, self.param("bias", nn.initializers.zeros_init(), self.sizes[1:])


class XmodAdapter(nn.Module):
    """A bottleneck that belongs to one language (Pfeiffer et al. 2022, section 3).

    Attributes:
        config: The config.
    """

    config: XmodConfig

    def setup(self) -> None:
        """Build both layers."""
        width, inner = self.config.hidden_size, self.config.adapter_size
        self.dense1 = Affine(self.config, (width, inner))
        self.dense2 = Affine(self.config, (inner, width))

    def __call__(self) -> Weights:
        """Return its parameters."""
        return (*self.dense1(), *self.dense2())


@jax.custom_jvp
def pick(ids: Array, every: tuple[Array, ...]) -> Array:
    """Return (B, ...), of P arrays of one shape those that (B,) ids name.

    A processor copies B of them one by one: to stack all would move P of them for every layer.
    Elsewhere branches cost more than memory traffic does.
    """
    return lax.platform_dependent(ids, every, cpu=_pick_each, default=_pick_stacked)


def _pick_each(ids: Array, every: tuple[Array, ...]) -> Array:
    branches = [lambda index=index: every[index] for index in range(len(every))]
    return lax.map(lambda chosen: lax.switch(chosen, branches), ids)


def _pick_stacked(ids: Array, every: tuple[Array, ...]) -> Array:
    return jnp.stack(every)[ids]


@pick.defjvp
def _pick_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiate it as a stack: branches would add up P arrays for each of B."""
    ids, every = primals
    return pick(ids, every), _pick_stacked(ids, tangents[1])


class XmodAdapters(nn.Module):
    """The adapters of all languages; a call touches those that occur.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Array, languages: Languages) -> Array:
        """Send (B, S, D) through the adapters of its languages."""
        codes = self.config.languages if self.is_initializing() else languages.present
        made = {code: XmodAdapter(self.config, name=code)() for code in codes}
        hidden, *_ = promote_dtype(hidden, dtype=self.dtype)
        adapters: list[Any] = [
            tuple(value.astype(hidden.dtype) for value in made[code]) for code in languages.present
        ]
        if len(adapters) == 1:
            return self._through(hidden, adapters[0])
        if languages.ids is None:
            return self._by_group(hidden, adapters, languages)
        parameters = list(zip(*adapters, strict=True))  # one after the other, of P languages
        one_token_each = hidden.shape[1] == 1 and len(hidden) >= len(adapters)
        if one_token_each or languages.ids.shape[1] > 1:
            return self._by_token(hidden, parameters, languages.ids)
        ids = jnp.asarray(languages.ids)[:, 0]
        kernel1, bias1, kernel2, bias2 = (pick(ids, every) for every in parameters)
        return self._through(hidden, (kernel1, bias1[:, None], kernel2, bias2[:, None]))

    def _through(self, hidden: Array, weights: Any) -> Array:
        """Return (..., D) of (..., D), through one adapter or one for each sample."""
        kernel1, bias1, kernel2, bias2 = weights
        inner = ACTIVATION_FUNCTIONS[self.config.hidden_act](hidden @ kernel1 + bias1)
        return inner @ kernel2 + bias2

    def _by_group(self, hidden: Array, adapters: list[Any], languages: Languages) -> Array:
        """Send each language's samples or tokens through its adapter: as little work as can be."""
        rows = hidden.reshape(-1, hidden.shape[-1]) if languages.by_token else hidden
        ends = np.cumsum(languages.sizes)[:-1].tolist()
        groups = jnp.split(rows[languages.order], ends)
        pairs = zip(groups, adapters, strict=True)
        adapted = jnp.concatenate([self._through(group, weights) for group, weights in pairs])
        return adapted[languages.inverse].reshape(hidden.shape)

    def _by_token(self, hidden: Array, parameters: list[Any], ids: Any) -> Array:
        """Send every token through all adapters and keep what is its own.

        An adapter for each token would be far more to read than this is to compute.
        """
        kernel1, bias1, kernel2, bias2 = (jnp.stack(every) for every in parameters)
        inner = jnp.einsum("bsd,pda->bspa", hidden, kernel1) + bias1
        own = (ids[..., None] == jnp.arange(len(kernel1)))[..., None]  # (B, S or 1, P, 1)
        inner = jnp.where(own, ACTIVATION_FUNCTIONS[self.config.hidden_act](inner), 0)
        return jnp.einsum("bspa,pad->bsd", inner, kernel2) + bias2[ids]
