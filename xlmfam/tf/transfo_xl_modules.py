"""The layers of Transformer-XL in TensorFlow: clusters of the vocabulary, relative attention.

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, E width of a
cluster's embeddings, V vocabulary, C tail clusters, N positions, R slots of a ring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.tf.attention import Tensor, attend, merge_heads, sizes, split_heads
from xlmfam.tf.checks import is_cheap
from xlmfam.tf.layers import IGNORED, Dropper, Embedding, LayerNorm, Linear, TableLayer
from xlmfam.tf.transfo_xl_memory import LayerMemory, Ring

Memory = Tensor | LayerMemory | int | None


class Projections(TableLayer):
    """Matrices (D, E) of clusters; each is an attribute, named by its number."""

    def of(self, cluster: int) -> Tensor:
        """Return the matrix of a cluster."""
        return tf.convert_to_tensor(getattr(self, str(cluster)))


class AdaptiveEmbedding(TableLayer):
    """Embeddings that are narrower the rarer the words (Baevski and Auli 2019, section 3).

    Args:
        n_token: V.
        d_embed: E of the most frequent words.
        d_proj: D.
        cutoffs: First id of each tail cluster.
        div_val: Each cluster is narrower than the last one by this factor; with 1 they share one
            table.
        sample_softmax: Not supported when positive.
        **kwargs: Of the layer.
    """

    def __init__(
        self,
        n_token: int,
        d_embed: int,
        d_proj: int,
        cutoffs: Sequence[int],
        div_val: int = 1,
        sample_softmax: int = -1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if sample_softmax > 0:
            raise ValueError(f"sample_softmax is not supported, got {sample_softmax}")
        self.d_proj = d_proj
        self.div_val = div_val
        self.ends = [*cutoffs, n_token] if div_val > 1 else [n_token]
        self.widths = [d_embed // div_val**cluster for cluster in range(len(self.ends))]
        self.is_projected = div_val > 1 or d_embed != d_proj
        policy = self.dtype_policy
        self.emb_layers = [
            Embedding(dtype=policy, name=f"emb_layers_{cluster}")
            for cluster in range(len(self.ends))
        ]
        self.emb_projs = Projections(dtype=policy, name="emb_projs")

    def resize(self, config: TransfoXLConfig) -> None:
        """Take over where clusters end now; the tables have been replaced."""
        self.ends = config.cluster_ends if self.div_val > 1 else [config.vocab_size]

    def call(self, input_ids: Tensor) -> Tensor:
        """Return (B, S, D) of (B, S) ids."""
        if self.emb_layers[0].embeddings is None:
            self.create()
        if len(self.emb_layers) == 1:
            hidden = self._embed(0, input_ids)
        else:
            hidden = self._by_cluster(tf.reshape(input_ids, [-1]))
            hidden = tf.reshape(hidden, [*sizes(input_ids), self.d_proj])
        return hidden * tf.cast(math.sqrt(self.d_proj), hidden.dtype)

    def create(self) -> None:
        """Create the variables, where no model does."""
        normal = keras.initializers.RandomNormal(stddev=0.02)
        for cluster, rows in enumerate(cluster_sizes(self.ends)):
            width, layer = self.widths[cluster], self.emb_layers[cluster]
            layer.embeddings = layer.add_weight(shape=(rows, width), initializer=normal)
            if self.is_projected:
                shape, name = (self.d_proj, width), str(cluster)
                variable = self.emb_projs.add_weight(shape=shape, initializer=normal, name=name)
                setattr(self.emb_projs, name, variable)

    def _by_cluster(self, ids: Tensor) -> Tensor:
        """Return (N, D) of (N,) ids."""
        looks = is_cheap(ids)
        hidden = tf.zeros([sizes(ids)[0], self.d_proj], self.compute_dtype)
        first = 0
        for cluster, end in enumerate(self.ends):
            inside = (ids >= first) & (ids < end)
            if looks:
                index = tf.where(inside)
                vectors = self._embed(cluster, tf.gather_nd(ids, index) - first)
                hidden = tf.tensor_scatter_nd_update(hidden, index, vectors)
            else:
                # No shape that depends on values: each position looks into every cluster.
                places = tf.clip_by_value(ids - first, 0, end - first - 1)
                hidden = tf.where(inside[:, None], self._embed(cluster, places), hidden)
            first = end
        return hidden

    def _embed(self, cluster: int, places: Tensor) -> Tensor:
        vectors = self.emb_layers[cluster](places)
        if not self.is_projected:
            return vectors
        *rows, width = sizes(vectors)
        projection = self.emb_projs.of(cluster)
        flat = tf.matmul(tf.reshape(vectors, [-1, width]), projection, transpose_b=True)
        return tf.reshape(flat, [*rows, self.d_proj])


def cluster_sizes(ends: Sequence[int]) -> list[int]:
    """Return the number of tokens of each cluster."""
    return [end - first for first, end in zip([0, *ends], ends, strict=False)]


class AdaptiveSoftmax(TableLayer):
    """Log-probabilities by cluster (Grave et al. 2017): a word's is its cluster's plus its own.

    The head scores the most frequent words and the tail clusters; each tail its words. The
    embedding is handed on to what may be tied to it.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    cluster_weight: Any = None
    cluster_bias: Any = None

    def __init__(self, config: TransfoXLConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.bounds = config.cluster_bounds
        self.is_divided = config.div_val > 1
        self.is_tied = config.tie_word_embeddings
        self.is_projected = self.is_divided or config.d_embed != config.d_model
        self.ties_projection = [config.ties_projection(c) for c in range(len(self.bounds))]
        tables = len(self.bounds) if self.is_divided else 1
        self.out_layers = [
            Linear(dtype=policy, name=f"out_layers_{cluster}") for cluster in range(tables)
        ]
        self.out_projs = Projections(dtype=policy, name="out_projs")

    def resize(self, config: TransfoXLConfig) -> None:
        """Take over where clusters end now; the weights have been replaced."""
        self.bounds = config.cluster_bounds

    @property
    def tails(self) -> int:
        """Number of tail clusters."""
        return len(self.bounds) - 1

    def call(
        self,
        hidden: Tensor,
        words: AdaptiveEmbedding,
        targets: Tensor | None = None,
        by_value: bool | None = None,
        only_the_best: bool = False,
    ) -> Tensor:
        """Return log-probabilities (N, V), or with targets losses (N,).

        Args:
            hidden: (N, D).
            words: The embedding.
            targets: (N,) ids; see ``target_losses``.
            by_value: Shapes may depend on values; by default only outside of graphs.
            only_the_best: Return ``greedy_scores``.
        """
        if targets is not None:
            by_value = is_cheap(targets) if by_value is None else by_value
            return self.target_losses(hidden, words, targets, by_value)
        if only_the_best:
            return self.greedy_scores(hidden, words)
        return self.log_prob(hidden, words)

    def log_prob(self, hidden: Tensor, words: AdaptiveEmbedding) -> Tensor:
        """Return log-probabilities (N, V) of states (N, D)."""
        head = log_softmax(self.head(hidden, words))
        count = self.bounds[0][1]
        parts = [head[:, :count]]
        for cluster in range(1, self.tails + 1):
            given = log_softmax(self.tail(cluster, hidden, words))
            parts.append(given + head[:, count + cluster - 1, None])
        return tf.concat(parts, -1) if self.tails else head

    def target_losses(
        self, hidden: Tensor, words: AdaptiveEmbedding, targets: Tensor, by_value: bool
    ) -> Tensor:
        """Return minus the log-probabilities (N,) of targets (N,); 0 where one is -100.

        Args:
            hidden: (N, D).
            words: The embedding.
            targets: (N,).
            by_value: A tail cluster scores only the positions whose target is in it, rather than
                all of them; shapes then depend on values, which XLA does not have.
        """
        counts = targets != IGNORED
        count = self.bounds[0][1]
        of_head = tf.clip_by_value(targets, 0, count - 1)
        insides = []
        for cluster in range(1, self.tails + 1):
            first, end = self.bounds[cluster]
            inside = (targets >= first) & (targets < end)
            of_head = tf.where(inside, tf.cast(count + cluster - 1, of_head.dtype), of_head)
            insides.append(inside)
        losses = cross_entropy(self.head(hidden, words), of_head)
        for cluster, inside in enumerate(insides, 1):
            first, end = self.bounds[cluster]
            if by_value:
                index = tf.where(inside)
                logits = self.tail(cluster, tf.gather_nd(hidden, index), words)
                own = cross_entropy(logits, tf.gather_nd(targets, index) - first)
                losses = tf.tensor_scatter_nd_add(losses, index, own)
            else:
                place = tf.clip_by_value(targets - first, 0, end - first - 1)
                own = cross_entropy(self.tail(cluster, hidden, words), place)
                losses += tf.where(inside, own, 0.0)
        return tf.where(counts, losses, 0.0)

    def greedy_scores(self, hidden: Tensor, words: AdaptiveEmbedding) -> Tensor:
        """Return scores (N, V) whose largest is that of ``log_prob``.

        A word of a tail is no likelier than its cluster. Where the head has a word that is likelier
        than a cluster, that cluster's words are not looked at; they have the lowest score.

        Args:
            hidden: (N, D).
            words: The embedding.
        """
        head = log_softmax(self.head(hidden, words))
        count = self.bounds[0][1]
        best = tf.reduce_max(head[:, :count], -1)
        parts = [head[:, :count]]
        for cluster in range(1, self.tails + 1):
            reach = head[:, count + cluster - 1]
            parts.append(self._reached(cluster, hidden, words, reach, best))
            best = tf.maximum(best, tf.reduce_max(parts[-1], -1))
        return tf.concat(parts, -1) if self.tails else head

    def _reached(self, cluster: int, hidden: Tensor, words: Any, reach: Tensor, best: Tensor):
        """Return scores (N, words) of a tail; the lowest where ``reach`` is nowhere the best."""
        first, end = self.bounds[cluster]

        def look():
            return log_softmax(self.tail(cluster, hidden, words)) + reach[:, None]

        def skip():
            return tf.fill([sizes(hidden)[0], end - first], tf.float32.min)

        return tf.cond(tf.reduce_any(reach > best), look, skip)

    def head(self, hidden: Tensor, words: AdaptiveEmbedding) -> Tensor:
        """Return logits (N, first cluster + C) of states (N, D)."""
        hidden = self._project(0, hidden, words)
        logits = self._words(0, hidden, words)
        if not self.tails:
            return logits
        # Two products: joining the weights would copy the largest table at every call.
        tails = tf.matmul(hidden, tf.convert_to_tensor(self.cluster_weight), transpose_b=True)
        return tf.concat([logits, tails + tf.convert_to_tensor(self.cluster_bias)], -1)

    def tail(self, cluster: int, hidden: Tensor, words: AdaptiveEmbedding) -> Tensor:
        """Return logits (N, words) of states (N, D), given that it is this cluster."""
        return self._words(cluster, self._project(cluster, hidden, words), words)

    def _project(self, cluster: int, hidden: Tensor, words: AdaptiveEmbedding) -> Tensor:
        if not self.is_projected:
            return hidden
        if self.ties_projection[cluster]:
            return tf.matmul(hidden, words.emb_projs.of(cluster if self.is_divided else 0))
        return tf.matmul(hidden, self.out_projs.of(cluster))

    def _words(self, cluster: int, hidden: Tensor, words: AdaptiveEmbedding) -> Tensor:
        """Return logits (N, words) of projected states (N, E)."""
        table = cluster if self.is_divided else 0
        whole = self.is_divided or not self.tails
        chosen = slice(None) if whole else slice(*self.bounds[cluster])
        layer = self.out_layers[table]
        if self.is_tied:
            weight = tf.convert_to_tensor(words.emb_layers[table].embeddings)
            weight = weight if whole else weight[chosen]
            logits = tf.matmul(hidden, tf.cast(weight, hidden.dtype), transpose_b=True)
        else:
            weight = tf.convert_to_tensor(layer.kernel)
            logits = tf.matmul(hidden, weight if whole else weight[:, chosen])
        return logits + tf.convert_to_tensor(layer.bias)[chosen]


def log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities in float32."""
    return tf.nn.log_softmax(tf.cast(logits, tf.float32))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return minus the log-probabilities (N,) of targets (N,) under logits (N, words)."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))


class Distances(NamedTuple):
    """What attention needs to know of positions, made once per call.

    Attributes:
        vectors: (U, D) sinusoids of the distances U - 1 to 0; ``None`` with a ring, which has them
            projected. Where U is below T, what is further away counts as the first.
        allowed: What each query may see, (B or 1, 1, S, T), with a ring by slot.
        shift: (B, T) places in memory and text that each key is at, where padding on the left
            moves the memory, or ``None``.
        ring: Where things stand in a ring, or ``None``.
    """

    vectors: Tensor | None
    allowed: Tensor
    shift: Tensor | None = None
    ring: Ring | None = None


def sinusoids(distances: Tensor, width: int, dtype: Any) -> Tensor:
    """Return (N, D): sines of all frequencies, then cosines (Vaswani et al. 2017, section 3.5)."""
    half = tf.range(0, width, 2, dtype=tf.float32)
    angles = tf.cast(distances, tf.float32)[:, None] * tf.pow(10000.0, -half / width)
    return tf.cast(tf.concat([tf.sin(angles), tf.cos(angles)], -1), dtype)


def every_distance(values: Tensor, keys: Any) -> Tensor:
    """Return (..., T, K) of (..., U, K): the distances T - 1 to 0, the first for what is beyond."""
    more = keys - sizes(values)[-2]
    if not tf.is_tensor(more) and not more:
        return values
    return tf.concat([tf.repeat(values[..., :1, :], more, -2), values], -2)


def by_key(scores: Tensor, keys: Any) -> Tensor:
    """Return (B, H, S, T) scores by key of (B, H, S, T + 1) scores by distance.

    Query i stands ``S - 1 - i`` distances further on in its row than the last query does in its
    own. As rows are one longer than there are keys, that is a slice (appendix B of the paper).
    """
    batch, heads, queries, _ = sizes(scores)
    flat = tf.reshape(scores, [batch, heads, -1])
    flat = flat[..., queries - 1 : queries - 1 + queries * keys]
    return tf.reshape(flat, [batch, heads, queries, keys])


class RelativeAttention(TableLayer):
    """Attention by content and distance, with its residual and norm (section 3.3 of the paper).

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    r_r_bias: Any = None
    r_w_bias: Any = None

    def __init__(self, config: TransfoXLConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.heads = config.n_head
        self.rate = config.dropout
        self.attention_rate = config.dropatt
        self.pre_norm = config.pre_lnorm
        self.inner = config.n_head * config.d_head
        self.qkv_net = Linear(dtype=policy, name="qkv_net")
        self.o_net = Linear(dtype=policy, name="o_net")
        self.layer_norm = LayerNorm(config.layer_norm_epsilon, dtype=policy, name="layer_norm")
        self.r_net = Linear(dtype=policy, name="r_net")

    def call(
        self,
        hidden: Tensor,
        memory: Memory,
        distances: Distances,
        biases: tuple[Tensor, Tensor] | None = None,
        head_mask: Tensor | None = None,
        dropper: Dropper | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Attend to the memory and to ``hidden`` itself.

        Args:
            hidden: (B, S, D).
            memory: (B, M, D), keys and values, a number of zeros, or ``None``.
            distances: Of this call.
            biases: (H, K) of contents and of distances, where all layers share them.
            head_mask: (H,) factors of attention weights.
            dropper: Drops values in training.

        Returns:
            (B, S, D); the (B, H, S, T) weights; keys and values (B, H, T, K).
        """
        dropper = dropper or Dropper(None)
        content, distance = biases or (
            tf.convert_to_tensor(self.r_w_bias),
            tf.convert_to_tensor(self.r_r_bias),
        )
        if isinstance(memory, LayerMemory):
            assert distances.ring is not None
            query, key, value = self.project(hidden, None)
            key, value = memory.append(key, value, distances.ring)
            bias = self.by_slot(query + distance[:, None], memory.vectors, distances.ring, key)
        else:
            query, key, value = self.project(hidden, memory, distances.shift)
            keys = sizes(key)[2]
            vectors = every_distance(self.project_distances(distances.vectors), keys)
            bias = self.by_distance(query + distance[:, None], vectors)
        mixed, weights = attend(
            query + content[:, None],
            key,
            value,
            distances.allowed,
            drop=lambda weights: dropper.drop(weights, self.attention_rate),
            head_mask=head_mask,
            scores_bias=bias,
        )
        return self.finish(mixed, hidden, dropper), weights, (key, value)

    def project(
        self, hidden: Tensor, memory: Tensor | int | None, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, S, K) of the text, keys and values (B, H, T, K) of all."""
        if memory is not None and not isinstance(memory, int):
            return self._project_both(hidden, memory, shift)
        if shift is not None and memory:
            # Padding becomes part of the zeros before the text.
            is_text = (shift[:, memory:] >= memory)[..., None]
            hidden = tf.where(is_text, hidden, tf.zeros([], hidden.dtype))
        query, key, value = self._queries_keys_values(hidden)
        if memory:
            key, value = (
                tf.concat([row, own], 2)
                for row, own in zip(self.zeros(sizes(hidden)[0], memory), (key, value), strict=True)
            )
        return query, key, value

    def zeros(self, batch: Any, length: Any) -> tuple[Tensor, Tensor]:
        """Return the key and the value (B, H, length, K) of zeros; one is projected for all."""
        row = tf.zeros([1, 1, self.qkv_net.kernel.shape[0]], self.compute_dtype)
        _, key, value = self._queries_keys_values(row)
        shape = [batch, *key.shape[1:2], length, key.shape[-1]]
        return tf.broadcast_to(key, shape), tf.broadcast_to(value, shape)

    def _queries_keys_values(self, source: Tensor) -> list[Tensor]:
        source = self.layer_norm(source) if self.pre_norm else source
        parts = tf.split(self.qkv_net(source), 3, -1)
        return [split_heads(part, self.heads) for part in parts]

    def _project_both(self, hidden: Tensor, memory: Tensor, shift: Tensor | None):
        source = tf.concat([memory, hidden], 1)
        if shift is not None:
            source = tf.gather(source, shift, batch_dims=1)
        if self.pre_norm:
            source = self.layer_norm(source)
        # The memory asks nothing.
        kernel = tf.convert_to_tensor(self.qkv_net.kernel)
        text = source[:, sizes(memory)[1] :]
        query = product(text, kernel[:, : self.inner])
        key, value = tf.split(product(source, kernel[:, self.inner :]), 2, -1)
        return tuple(split_heads(part, self.heads) for part in (query, key, value))

    def project_distances(self, vectors: Tensor) -> Tensor:
        """Return (H, N, K) of sinusoids (N, D)."""
        return split_heads(self.r_net(vectors)[None], self.heads)[0]

    def by_distance(self, query: Tensor, vectors: Tensor) -> Tensor:
        """Return (B, H, S, T) scores by key.

        Args:
            query: (B, H, S, K).
            vectors: (H, T, K) projected distances.
        """
        # One distance more, which nobody reads, makes ``by_key`` a slice.
        more = tf.concat([vectors, vectors[:, -1:]], 1)
        return by_key(scores_of(query, more), sizes(vectors)[1])

    def by_slot(self, query: Tensor, vectors: Tensor, ring: Ring, key: Tensor) -> Tensor:
        """Return (B, H, S, R) scores by slot of a ring.

        Args:
            query: (B, H, S, K).
            vectors: (H, U, K) projected distances.
            ring: Where things stand.
            key: (B, H, R, K).
        """
        slots = key.shape[2]
        if query.shape[2] != 1:
            return ring.by_slot(self.by_distance(query, every_distance(vectors, slots)))
        scores = scores_of(query, vectors)
        more = tf.repeat(scores[..., :1], slots - vectors.shape[1], -1)
        return ring.by_slot(tf.concat([more, scores], -1))

    def finish(self, mixed: Tensor, hidden: Tensor, dropper: Dropper) -> Tensor:
        """Return (B, S, D) of what attention gave, (B, H, S, K), and the residual (B, S, D)."""
        out = dropper.drop(self.o_net(merge_heads(mixed)), self.rate)
        return hidden + out if self.pre_norm else self.layer_norm(hidden + out)


def product(values: Tensor, kernel: Tensor) -> Tensor:
    """Return (B, S, out) of (B, S, in), as one matrix product."""
    *rows, width = sizes(values)
    flat = tf.matmul(tf.reshape(values, [-1, width]), kernel)
    return tf.reshape(flat, [*rows, kernel.shape[1]])


def scores_of(query: Tensor, vectors: Tensor) -> Tensor:
    """Return scores (B, H, S, N) of queries (B, H, S, K) by projected distances (H, N, K)."""
    query = query * tf.cast(query.shape[-1] ** -0.5, query.dtype)
    if query.shape[2] != 1:
        return tf.matmul(query, vectors[None], transpose_b=True)
    # One product for each head, whatever the batch: XLA would repeat the vectors for every row.
    scores = tf.matmul(tf.transpose(query[:, :, 0], [1, 0, 2]), vectors, transpose_b=True)
    return tf.transpose(scores, [1, 0, 2])[:, :, None]


class FeedForward(TableLayer):
    """Two linear layers by position, with their residual and norm.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: TransfoXLConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.rate = config.dropout
        self.pre_norm = config.pre_lnorm
        # By their places among activation and dropouts.
        self.CoreNet = {
            place: Linear(dtype=policy, name=f"CoreNet_{place}") for place in ("0", "3")
        }
        self.layer_norm = LayerNorm(config.layer_norm_epsilon, dtype=policy, name="layer_norm")

    def call(self, hidden: Tensor, dropper: Dropper) -> Tensor:
        """Return (B, S, D) of (B, S, D)."""
        source = self.layer_norm(hidden) if self.pre_norm else hidden
        inner = dropper.drop(tf.nn.relu(self.CoreNet["0"](source)), self.rate)
        hidden = hidden + dropper.drop(self.CoreNet["3"](inner), self.rate)
        return hidden if self.pre_norm else self.layer_norm(hidden)


class TransfoXLLayer(TableLayer):
    """One layer: relative attention, feed-forward.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: TransfoXLConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.dec_attn = RelativeAttention(config, dtype=policy, name="dec_attn")
        self.pos_ff = FeedForward(config, dtype=policy, name="pos_ff")

    def call(
        self,
        hidden: Tensor,
        memory: Memory,
        distances: Distances,
        biases: tuple[Tensor, Tensor] | None = None,
        head_mask: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return (B, S, D), attention weights, keys and values; see ``RelativeAttention``."""
        dropper = Dropper(seed)
        hidden, weights, present = self.dec_attn(
            hidden, memory, distances, biases, head_mask, dropper.inner()
        )
        return self.pos_ff(hidden, dropper.inner()), weights, present
