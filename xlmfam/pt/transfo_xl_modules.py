"""The modules of Transformer-XL in PyTorch: clusters of the vocabulary, relative attention, layer.

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, E width of a
cluster's embeddings, V vocabulary, C tail clusters, N positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.pt.attention import Mask, attend, merge_heads, split_heads
from xlmfam.pt.checks import IGNORED, is_cheap
from xlmfam.pt.layers import embedding
from xlmfam.pt.linear import Linear, linear
from xlmfam.pt.transfo_xl_memory import LayerMemory


class AdaptiveEmbedding(nn.Module):
    """Embeddings that are narrower the rarer the words (Baevski and Auli 2019, section 3).

    Args:
        n_token: V.
        d_embed: E of the most frequent words.
        d_proj: D.
        cutoffs: First id of each tail cluster.
        div_val: Each cluster is narrower than the last one by this factor; with 1 they share one
            table.
        sample_softmax: Not supported when positive.
    """

    def __init__(
        self,
        n_token: int,
        d_embed: int,
        d_proj: int,
        cutoffs: Sequence[int],
        div_val: int = 1,
        sample_softmax: int = -1,
    ):
        super().__init__()
        if sample_softmax > 0:
            raise XlmfamError(f"sample_softmax is not supported, got {sample_softmax}")
        self.scale = math.sqrt(d_proj)
        self.div_val = div_val
        self.ends = [*cutoffs, n_token] if div_val > 1 else [n_token]
        self.emb_layers = nn.ModuleList()
        self.emb_projs = nn.ParameterList()
        for cluster, rows in enumerate(cluster_sizes(self.ends)):
            width = d_embed // div_val**cluster
            self.emb_layers.append(embedding(rows, width))
            if div_val > 1 or d_embed != d_proj:
                self.emb_projs.append(torch.empty(d_proj, width))
        for value in self.parameters():
            if not value.is_meta:  # a model draws what its table says
                nn.init.normal_(value, std=0.01)

    def resize(self, config: TransfoXLConfig) -> None:
        """Take over where clusters end now; the tables have been replaced."""
        self.ends = config.cluster_ends if self.div_val > 1 else [config.vocab_size]
        layer: Any
        for layer in self.emb_layers:
            layer.num_embeddings = len(layer.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return (B, S, D) of (B, S) ids."""
        if len(self.emb_layers) == 1:
            return self._embed(0, input_ids) * self.scale
        looks = is_cheap(input_ids)
        flat, hidden, first = input_ids.reshape(-1), None, 0
        for cluster, end in enumerate(self.ends):
            inside = (flat >= first) & (flat < end)
            if looks:
                (index,) = inside.nonzero(as_tuple=True)
                vectors = self._embed(cluster, flat[index] - first)
                if hidden is None:
                    hidden = vectors.new_zeros(flat.numel(), vectors.shape[-1])
                hidden = hidden.index_copy(0, index, vectors)
            else:
                # No shape that depends on values: each position looks into every cluster.
                places = (flat - first).clamp(0, end - first - 1)
                vectors = self._embed(cluster, places) * inside[:, None]
                hidden = vectors if hidden is None else hidden + vectors
            first = end
        assert hidden is not None
        return hidden.view(*input_ids.shape, -1) * self.scale

    def _embed(self, cluster: int, places: Tensor) -> Tensor:
        vectors = self.emb_layers[cluster](places)
        if len(self.emb_projs):
            vectors = linear(vectors, self.emb_projs[cluster])
        return vectors


def cluster_sizes(ends: Sequence[int]) -> list[int]:
    """Return the number of tokens of each cluster."""
    return [end - first for first, end in zip([0, *ends], ends, strict=False)]


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities by cluster (Grave et al. 2017): a word's is its cluster's plus its own.

    The head scores the most frequent words and the tail clusters; each tail its words.

    Args:
        config: The config.
    """

    def __init__(self, config: TransfoXLConfig):
        super().__init__()
        self.bounds = config.cluster_bounds
        self.is_divided = config.div_val > 1
        tails = len(config.cutoffs)
        if tails:
            self.cluster_weight = nn.Parameter(torch.empty(tails, config.d_embed))
            self.cluster_bias = nn.Parameter(torch.empty(tails))
        self.out_layers = nn.ModuleList()
        self.out_projs = nn.ParameterList()
        sizes = cluster_sizes(config.cluster_ends) if self.is_divided else [config.vocab_size]
        for cluster, rows in enumerate(sizes):
            self.out_layers.append(Linear(config.cluster_width(cluster), rows))
        if self.is_divided or config.d_embed != config.d_model:
            for cluster in range(tails + 1):
                width = config.cluster_width(cluster if self.is_divided else 0)
                self.out_projs.append(torch.empty(config.d_model, width))

    def resize(self, config: TransfoXLConfig) -> None:
        """Take over where clusters end now; the weights have been replaced."""
        self.bounds = config.cluster_bounds
        layer: Any
        for layer in self.out_layers:
            layer.out_features = len(layer.weight)

    @property
    def tails(self) -> int:
        """Number of tail clusters."""
        return len(self.bounds) - 1

    def head(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities (N, first cluster + C) of states (N, D)."""
        hidden = self._project(0, hidden)
        scores = linear(hidden, *self._words(0))
        if self.tails:
            # Two products: joining the weights would copy those of all frequent words.
            clusters = linear(hidden, self.cluster_weight, self.cluster_bias)
            scores = torch.cat([scores, clusters], -1)
        return scores.log_softmax(-1, dtype=torch.float32)

    def tail(self, cluster: int, hidden: Tensor) -> Tensor:
        """Return log-probabilities (N, words) of states (N, D), given that it is this cluster."""
        scores = linear(self._project(cluster, hidden), *self._words(cluster))
        return scores.log_softmax(-1, dtype=torch.float32)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities (N, V) of states (N, D)."""
        head = self.head(hidden)
        words = self.bounds[0][1]
        parts = [head[:, :words]]
        for cluster in range(1, self.tails + 1):
            given = self.tail(cluster, hidden)
            parts.append(given + head[:, words + cluster - 1, None])
        return torch.cat(parts, -1) if self.tails else head

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return minus the log-probabilities (N,) of targets (N,); 0 where one is -100.

        A tail cluster scores only the positions whose target is in it; where values cannot be
        looked at, all of them.

        Args:
            hidden: (N, D).
            targets: (N,).
        """
        counts = targets != IGNORED
        looks = is_cheap(targets)
        head = self.head(hidden)
        words = self.bounds[0][1]
        losses = -head.gather(1, targets.clamp(0, words - 1)[:, None])[:, 0]
        for cluster in range(1, self.tails + 1):
            first, end = self.bounds[cluster]
            inside = (targets >= first) & (targets < end)
            if looks:
                (index,) = inside.nonzero(as_tuple=True)
                if not index.numel():
                    continue
                given = self.tail(cluster, hidden[index])
                own = given.gather(1, (targets[index] - first)[:, None])[:, 0]
                losses = losses.index_copy(0, index, -own - head[index, words + cluster - 1])
            else:
                given = self.tail(cluster, hidden)
                place = (targets - first).clamp(0, end - first - 1)
                own = given.gather(1, place[:, None])[:, 0]
                losses = torch.where(inside, -own - head[:, words + cluster - 1], losses)
        return losses * counts

    def greedy_scores(self, hidden: Tensor) -> Tensor:
        """Return scores (N, V) whose largest is that of ``log_prob``.

        A word of a tail is no likelier than its cluster. Where the head has a word that is likelier
        than a cluster, that cluster's words are not looked at; they have the lowest score.

        Args:
            hidden: (N, D).
        """
        head = self.head(hidden)
        words = self.bounds[0][1]
        best = head[:, :words].max(-1).values
        parts = [head[:, :words]]
        for cluster in range(1, self.tails + 1):
            first, end = self.bounds[cluster]
            reach = head[:, words + cluster - 1]
            if bool((reach > best).any()):
                parts.append(self.tail(cluster, hidden) + reach[:, None])
                best = torch.maximum(best, parts[-1].max(-1).values)
            else:
                lowest = torch.finfo(head.dtype).min
                parts.append(head.new_full((len(head), end - first), lowest))
        return torch.cat(parts, -1) if self.tails else head

    def _words(self, cluster: int) -> tuple[Tensor, Tensor]:
        layer: Any = self.out_layers[cluster if self.is_divided else 0]
        if self.is_divided:
            return layer.weight, layer.bias
        first, end = self.bounds[cluster]
        return layer.weight[first:end], layer.bias[first:end]

    def _project(self, cluster: int, hidden: Tensor) -> Tensor:
        return linear(hidden, self.out_projs[cluster].t()) if len(self.out_projs) else hidden


class Distances(NamedTuple):
    """What attention needs to know of positions, made once per call.

    Attributes:
        vectors: (N, D) sinusoids of the distances N - 1 to 0; what is further away counts as the
            first.
        mask: What each query may see.
        shift: (B, T) places in memory and text that each key is at, where padding on the left
            moves the memory, or ``None``.
    """

    vectors: Tensor
    mask: Mask | None
    shift: Tensor | None


def sinusoids(distances: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return (N, D): sines of all frequencies, then cosines (Vaswani et al. 2017, section 3.5)."""
    half = torch.arange(0, width, 2, device=distances.device, dtype=torch.float32)
    angles = distances[:, None].float() * 10000.0 ** (-half / width)
    return torch.cat([angles.sin(), angles.cos()], -1).to(dtype)


def by_key(scores: Tensor, keys: int) -> Tensor:
    """Return (B, H, S, T) scores by key of (B, H, S, N) scores by distance.

    Query i stands ``S - 1 - i`` distances further on in its row than the last query does in its
    own. In rows that are one longer than there are keys, that is a view (appendix B of the paper).
    """
    batch, heads, queries, distances = scores.shape
    parts = [scores]
    if keys > distances:
        parts.insert(0, scores[..., :1].expand(-1, -1, -1, keys - distances))
    if queries > 1:
        parts.append(scores.new_zeros(batch, heads, queries, 1))  # nobody reads it
    if len(parts) > 1:
        scores = torch.cat(parts, -1)
    flat = scores.flatten(2)[..., queries - 1 : queries - 1 + queries * keys]
    return flat.view(batch, heads, queries, keys)


class RelativeAttention(nn.Module):
    """Attention by content and distance, with its residual and norm (section 3.3 of the paper).

    Args:
        config: The config.
    """

    def __init__(self, config: TransfoXLConfig):
        super().__init__()
        width, inner = config.d_model, config.n_head * config.d_head
        self.heads = config.n_head
        self.dropout = config.dropout
        self.attention_dropout = config.dropatt
        self.pre_norm = config.pre_lnorm
        self.r_r_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.r_w_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.qkv_net = Linear(width, 3 * inner, bias=False)
        self.o_net = Linear(inner, width, bias=False)
        self.layer_norm = nn.LayerNorm(width, config.layer_norm_epsilon)
        self.r_net = Linear(width, inner, bias=False)

    def forward(
        self,
        hidden: Tensor,
        memory: Tensor | LayerMemory | None,
        distances: Distances,
        head_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (B, S, D) and weights (B, H, S, T) or ``None``.

        Args:
            hidden: (B, S, D).
            memory: (B, M, D), keys and values, or ``None``.
            distances: Of this call.
            head_mask: (H,) factors of attention weights.
            need_weights: Return them.
        """
        if isinstance(memory, LayerMemory):
            query, key, value = self.project(hidden, None)
            key, value = memory.append(key, value, distances.shift)
            vectors = memory.project_distances(self, distances.vectors)
        else:
            query, key, value = self.project(hidden, memory, distances.shift)
            vectors = self.project_distances(distances.vectors)
        bias = by_key(self.by_distance(query, vectors), key.shape[2])
        rate = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            query + self.r_w_bias[:, None],
            key,
            value,
            distances.mask,
            dropout=rate,
            head_mask=head_mask,
            need_weights=need_weights,
            scores_bias=bias,
        )
        return self.finish(mixed, hidden), weights

    def project(
        self, hidden: Tensor, memory: Tensor | None, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, S, K) of the text, keys and values (B, H, T, K) of all."""
        source = hidden if memory is None else torch.cat([memory, hidden], 1)
        if shift is not None:
            source = source.gather(1, shift[..., None].expand(-1, -1, source.shape[-1]))
        if self.pre_norm:
            source = self.layer_norm(source)
        length, inner = hidden.shape[1], self.o_net.in_features
        if memory is None:
            query, key, value = self.qkv_net(source).split(inner, -1)
        else:
            # The memory asks nothing.
            weight = self.qkv_net.weight
            query = linear(source[:, -length:], weight[:inner])
            key, value = linear(source, weight[inner:]).split(inner, -1)
        heads = self.heads
        return split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)

    def project_distances(self, vectors: Tensor) -> Tensor:
        """Return (H, N, K) of sinusoids (N, D)."""
        return self.r_net(vectors).view(len(vectors), self.heads, -1).transpose(0, 1)

    def by_distance(self, query: Tensor, vectors: Tensor) -> Tensor:
        """Return scores (B, H, S, N) of queries (B, H, S, K) by projected distances (H, N, K)."""
        scale = query.shape[-1] ** -0.5
        return ((query + self.r_r_bias[:, None]) * scale) @ vectors.transpose(-1, -2)

    def finish(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        """Return (B, S, D) of what attention gave, (B, H, S, K), and the residual (B, S, D)."""
        out = F.dropout(self.o_net(merge_heads(mixed)), self.dropout, self.training)
        return hidden + out if self.pre_norm else self.layer_norm(hidden + out)


class FeedForward(nn.Module):
    """Two linear layers by position, with their residual and norm.

    Args:
        config: The config.
    """

    def __init__(self, config: TransfoXLConfig):
        super().__init__()
        self.pre_norm = config.pre_lnorm
        self.CoreNet = nn.Sequential(
            Linear(config.d_model, config.d_inner),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            Linear(config.d_inner, config.d_model),
            nn.Dropout(config.dropout),
        )
        self.layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, S, D) of (B, S, D)."""
        if self.pre_norm:
            return hidden + self.CoreNet(self.layer_norm(hidden))
        return self.layer_norm(hidden + self.CoreNet(hidden))


class TransfoXLLayer(nn.Module):
    """One layer: relative attention, feed-forward.

    Args:
        config: The config.
    """

    def __init__(self, config: TransfoXLConfig):
        super().__init__()
        self.dec_attn = RelativeAttention(config)
        self.pos_ff = FeedForward(config)

    def forward(self, hidden: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        """Return (B, S, D) and attention weights or ``None``; see ``RelativeAttention``."""
        hidden, weights = self.dec_attn(hidden, *arguments)
        return self.pos_ff(hidden), weights
