"""The clusters of Transformer-XL's vocabulary: adaptive embedding, adaptive softmax.

Shapes: B batch, S sequence, D width, E width of a cluster's embeddings, V vocabulary, C tail
clusters, N positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.flax.base import is_concrete
from xlmfam.flax.layers import Numbered
from xlmfam.flax.losses import IGNORED

CHUNK = 256  # positions that a tail cluster scores at once where it cannot be seen which it has


def normal(std: float) -> Any:
    """Return what draws initial weights."""
    return nn.initializers.normal(std)


class ProjectionTables(nn.Module):
    """Projections of clusters, named by their numbers.

    Attributes:
        shapes: (D, E) of every cluster; ``None`` where it has none of its own.
        std: Of their initial values.
    """

    shapes: tuple[tuple[int, int] | None, ...]
    std: float = 0.01

    def setup(self) -> None:
        """Build them."""
        self.tables = tuple(
            None if shape is None else self.param(str(index), normal(self.std), shape)
            for index, shape in enumerate(self.shapes)
        )


class Words(NamedTuple):
    """What the softmax may share with the embedding.

    Attributes:
        tables: (words, E) of every cluster, or one of all: the rows of a cluster are copied then.
        projections: (D, E) of every cluster, one of all, or none.
    """

    tables: tuple[Array, ...]
    projections: tuple[Array, ...]


class AdaptiveEmbedding(nn.Module):
    """Embeddings that are narrower the rarer the words (Baevski and Auli 2019, section 3).

    Attributes:
        n_token: V.
        d_embed: E of the most frequent words.
        d_proj: D.
        cutoffs: First id of each tail cluster.
        div_val: Each cluster is narrower than the last one by this factor; with 1 they share one
            table.
        sample_softmax: Not supported when positive.
        dtype: Of the computation.
    """

    n_token: int
    d_embed: int
    d_proj: int
    cutoffs: Sequence[int]
    div_val: int = 1
    sample_softmax: int = -1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build tables and projections."""
        if self.sample_softmax > 0:
            raise ValueError(f"sample_softmax is not supported, got {self.sample_softmax}")
        sizes, count = cluster_sizes(self.ends), len(self.ends)
        widths = [self.d_embed // self.div_val**cluster for cluster in range(count)]
        self.emb_layers = Numbered(
            lambda cluster: nn.Embed(sizes[cluster], widths[cluster], dtype=self.dtype), count
        )
        is_projected = self.div_val > 1 or self.d_embed != self.d_proj
        self.emb_projs = ProjectionTables(
            tuple((self.d_proj, width) if is_projected else None for width in widths)
        )

    @property
    def ends(self) -> list[int]:
        """First id behind each table."""
        return [*self.cutoffs, self.n_token] if self.div_val > 1 else [self.n_token]

    def __call__(self, input_ids: Array) -> Array:
        """Return (B, S, D) of (B, S) ids."""
        if len(self.ends) == 1:
            hidden = self._embed(0, input_ids)
        else:
            # No shape that depends on values: each position looks into every cluster.
            hidden, first = jnp.zeros((), self.dtype), 0
            for cluster, end in enumerate(self.ends):
                inside = (input_ids >= first) & (input_ids < end)
                places = jnp.clip(input_ids - first, 0, end - first - 1)
                hidden = hidden + jnp.where(inside[..., None], self._embed(cluster, places), 0.0)
                first = end
        return hidden * jnp.asarray(math.sqrt(self.d_proj), self.dtype)

    def _embed(self, cluster: int, places: Array) -> Array:
        vectors = self.emb_layers[cluster](places)
        projection = self.emb_projs.tables[cluster]
        if projection is None:
            return vectors
        return jnp.einsum("...e,de->...d", vectors, projection.astype(self.dtype))

    def words(self) -> Words:
        """Return tables and projections."""
        tables = tuple(self.emb_layers[cluster].embedding for cluster in range(len(self.ends)))
        return Words(tables, tuple(x for x in self.emb_projs.tables if x is not None))


def cluster_sizes(ends: Sequence[int]) -> list[int]:
    """Return the number of tokens of each cluster."""
    return [end - first for first, end in zip([0, *ends], ends, strict=False)]


class OutputLayer(nn.Module):
    """Weight and bias of the words of a cluster, or of all.

    Attributes:
        width: E.
        words: How many there are.
        is_tied: The weight is that of the embedding.
        std: Of the initial weight.
    """

    width: int
    words: int
    is_tied: bool
    std: float

    def setup(self) -> None:
        """Build them."""
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.words,))
        if not self.is_tied:
            self.kernel = self.param("kernel", normal(self.std), (self.width, self.words))


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities by cluster (Grave et al. 2017): a word's is its cluster's plus its own.

    The head scores the most frequent words and the tail clusters; each tail its words.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build what is not shared with the embedding."""
        config, zeros = self.config, nn.initializers.zeros_init()
        tails = len(config.cutoffs)
        if tails:
            self.cluster_weight = self.param("cluster_weight", zeros, (tails, config.d_embed))
            self.cluster_bias = self.param("cluster_bias", zeros, (tails,))
        sizes = cluster_sizes(config.cluster_ends) if self.is_divided else [config.vocab_size]
        self.out_layers = Numbered(
            lambda cluster: OutputLayer(
                config.cluster_width(cluster),
                sizes[cluster],
                config.tie_word_embeddings,
                config.init_std,
            ),
            len(sizes),
        )
        self.out_projs = ProjectionTables(
            tuple(self._own_projection(cluster) for cluster in range(tails + 1)),
            config.proj_init_std,
        )

    def _own_projection(self, cluster: int) -> tuple[int, int] | None:
        config = self.config
        if not self.is_projected or config.ties_projection(cluster):
            return None
        return config.d_model, config.cluster_width(cluster if self.is_divided else 0)

    @property
    def is_divided(self) -> bool:
        """Whether every cluster has a table of its own."""
        return self.config.div_val > 1

    @property
    def is_projected(self) -> bool:
        """Whether there are projections."""
        return self.is_divided or self.config.d_embed != self.config.d_model

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First id of each cluster, and the first behind it."""
        return self.config.cluster_bounds

    @property
    def tails(self) -> int:
        """Number of tail clusters."""
        return len(self.config.cutoffs)

    def head(self, hidden: Array, words: Words) -> Array:
        """Return log-probabilities (N, first cluster + C) of states (N, D)."""
        hidden = self._project(0, hidden, words)
        scores = self._scores(0, hidden, words)
        if self.tails:
            # Two products: joining the weights would copy those of all frequent words.
            clusters = _product("ne,ce->nc", hidden, self.cluster_weight.astype(self.dtype))
            scores = jnp.concatenate([scores, clusters + self.cluster_bias], -1)
        return jax.nn.log_softmax(scores, -1)

    def tail(self, cluster: int, hidden: Array, words: Words) -> Array:
        """Return log-probabilities (N, words) of states (N, D), given that it is this cluster."""
        scores = self._scores(cluster, self._project(cluster, hidden, words), words)
        return jax.nn.log_softmax(scores, -1)

    def log_prob(self, hidden: Array, words: Words) -> Array:
        """Return log-probabilities (N, V) of states (N, D)."""
        head = self.head(hidden, words)
        first = self.bounds[0][1]
        parts = [head[:, :first]]
        for cluster in range(1, self.tails + 1):
            given = self.tail(cluster, hidden, words)
            parts.append(given + head[:, first + cluster - 1, None])
        return jnp.concatenate(parts, -1)

    def losses(self, hidden: Array, targets: Any, words: Words) -> Array:
        """Return minus the log-probabilities (N,) of targets (N,); 0 where one is -100.

        A tail cluster scores only the positions whose target is in it; inside ``jax.jit``, only
        pieces of the text with such positions.

        Args:
            hidden: (N, D).
            targets: (N,).
            words: Of the embedding.
        """
        looks = is_concrete(targets)
        xp: Any = np if looks else jnp
        targets = xp.asarray(targets)
        head = self.head(hidden, words)
        most = self.bounds[0][1]
        losses = -_pick(head, xp.clip(targets, 0, most - 1))
        for cluster in range(1, self.tails + 1):
            first, end = self.bounds[cluster]
            inside = (targets >= first) & (targets < end)
            score = self._scorer(cluster, words)
            own = (seen_tail if looks else unseen_tail)(
                score, hidden, xp.clip(targets - first, 0, end - first - 1), inside
            )
            losses = jnp.where(inside, -own - head[:, most + cluster - 1], losses)
        return jnp.where(targets == IGNORED, 0.0, losses)

    def _scorer(self, cluster: int, words: Words) -> Callable[[Array, Array], Array]:
        """Return what gives log-probabilities (N,) of states (N, D) and places (N,)."""
        return lambda hidden, places: _pick(self.tail(cluster, hidden, words), places)

    def greedy_scores(self, hidden: Array, words: Words) -> Array:
        """Return scores (N, V) whose largest is that of ``log_prob``.

        A word of a tail is no likelier than its cluster. Where the head has a word that is likelier
        than a cluster, that cluster's words are not looked at; they have the lowest score.

        Args:
            hidden: (N, D).
            words: Of the embedding.
        """
        head = self.head(hidden, words)
        first = self.bounds[0][1]
        parts = [head[:, :first]]
        best = parts[0].max(-1)
        for cluster in range(1, self.tails + 1):
            reach = head[:, first + cluster - 1]
            scores = lax.cond(
                jnp.any(reach > best),
                lambda c=cluster, r=reach: self.tail(c, hidden, words) + r[:, None],
                lambda c=cluster: self._lowest(c, len(head)),
            )
            best = jnp.maximum(best, scores.max(-1))
            parts.append(scores)
        return jnp.concatenate(parts, -1)

    def _lowest(self, cluster: int, rows: int) -> Array:
        first, end = self.bounds[cluster]
        return jnp.full((rows, end - first), jnp.finfo(jnp.float32).min, jnp.float32)

    def _project(self, cluster: int, hidden: Array, words: Words) -> Array:
        if not self.is_projected:
            return hidden
        projection = self.out_projs.tables[cluster]
        if projection is None:
            projection = words.projections[cluster if self.is_divided else 0]
        return hidden @ projection.astype(self.dtype)

    def _scores(self, cluster: int, hidden: Array, words: Words) -> Array:
        """Return scores (N, words) of projected states (N, E), in float32."""
        table = cluster if self.is_divided else 0
        rows = slice(None) if self.is_divided else slice(*self.bounds[cluster])
        layer = self.out_layers[table]
        if self.config.tie_word_embeddings:
            is_cut = len(words.tables) > self.tails
            weight = words.tables[cluster] if is_cut else words.tables[0][rows]
            scores = _product("ne,ve->nv", hidden, weight.astype(self.dtype))
        else:
            scores = _product("ne,ev->nv", hidden, layer.kernel[:, rows].astype(self.dtype))
        return scores + layer.bias[rows]


def _product(what: str, left: Array, right: Array) -> Array:
    return jnp.einsum(what, left, right, preferred_element_type=jnp.float32)


def _pick(scores: Array, places: Array) -> Array:
    """Return (N,) of scores (N, V)."""
    return jnp.take_along_axis(scores, jnp.asarray(places)[:, None], 1)[:, 0]


Scorer = Callable[[Array, Array], Array]


def seen_tail(score: Scorer, hidden: Array, places: np.ndarray, inside: np.ndarray) -> Array:
    """Return ``score`` (N,) where a tail cluster has the target; anything elsewhere.

    Args:
        score: Gives log-probabilities of states and places.
        hidden: (N, D).
        places: (N,) of the targets in the cluster.
        inside: (N,), which are in it.
    """
    index = np.flatnonzero(inside)
    if not index.size:
        return jnp.zeros(len(inside), jnp.float32)
    # Powers of two, as JAX compiles for every number of rows.
    index = np.resize(index, min(1 << (index.size - 1).bit_length(), len(inside)))
    own = score(hidden[index], jnp.asarray(places[index]))
    return jnp.zeros(len(inside), own.dtype).at[index].set(own)


def unseen_tail(score: Scorer, hidden: Array, places: Array, inside: Array) -> Array:
    """As ``seen_tail``, with shapes that do not depend on values.

    The positions in the cluster come first, in pieces; pieces without any are skipped. Of the
    others nothing is kept for the backward pass, which computes them again.
    """
    count = len(inside)
    if count <= CHUNK:
        return score(hidden, places)
    order = jnp.argsort(~inside, stable=True)
    order = jnp.pad(order, (0, -count % CHUNK), mode="edge").reshape(-1, CHUNK)

    @jax.checkpoint
    def piece(rows: Array) -> Array:
        return lax.cond(
            jnp.any(inside[rows]),
            lambda: score(hidden[rows], places[rows]),
            lambda: jnp.zeros(CHUNK, jnp.float32),
        )

    own = lax.map(piece, order).reshape(-1)[:count]
    return jnp.zeros_like(own).at[order.reshape(-1)[:count]].set(own)
