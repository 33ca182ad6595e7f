"""The modules of X-MOD in PyTorch: embeddings, attention, adapters, layer.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width, A adapter
width, E encoder sequence, R = B * S tokens or B samples that languages are told for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.pt.attention import Mask, attend, merge_heads, split_heads
from xlmfam.pt.cache import LayerCache
from xlmfam.pt.layers import ACTIVATION_FUNCTIONS, embedding
from xlmfam.pt.linear import Linear


class Languages(NamedTuple):
    """Which adapter each part of a batch goes through, worked out once per call.

    Attributes:
        present: Codes of the languages that occur, in the order of their groups.
        sizes: How many rows each group has; empty where there is one language.
        order: (R,) rows by group.
        inverse: (R,) where each row stands in ``order``.
        by_token: Rows are tokens rather than samples.
        ids: (R,) language of each row, where the groups cannot be known (in a compiler).
    """

    present: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    order: Tensor | None = None
    inverse: Tensor | None = None
    by_token: bool = False
    ids: Tensor | None = None


class XmodEmbeddings(nn.Module):
    """Words, positions and token types.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        width, pad = config.hidden_size, config.pad_token_id
        self.absolute = config.position_embedding_type == "absolute"
        self.dropout = config.hidden_dropout_prob
        self.word_embeddings = embedding(config.vocab_size, width, pad)
        self.position_embeddings = embedding(config.max_position_embeddings, width, pad)
        self.token_type_embeddings = embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, vectors: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return (B, S, D) of word vectors (B, S, D), types and positions (B or 1, S)."""
        hidden = vectors + self.token_type_embeddings(token_type_ids)
        if self.absolute:
            hidden = hidden + self.position_embeddings(position_ids)
        return F.dropout(self.LayerNorm(hidden), self.dropout, self.training)


class XmodProjections(nn.Module):
    """Query, key and value of an attention, and the embedding of distances where there is one.

    Args:
        config: The config.
        relative: Distances count.
    """

    def __init__(self, config: XmodConfig, relative: bool):
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        if relative:
            rows = 2 * config.max_position_embeddings - 1
            self.distance_embedding = embedding(rows, width // heads)


class XmodAttentionOutput(nn.Module):
    """The projection back and the norm of an attention block.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class XmodAttention(nn.Module):
    """One attention block with its residual and norm, over the text or over an encoder.

    Args:
        config: The config.
        over_encoder: Attend to an encoder, where distances mean nothing.
    """

    def __init__(self, config: XmodConfig, over_encoder: bool = False):
        super().__init__()
        kind = "absolute" if over_encoder else config.position_embedding_type
        self.relative = {"relative_key": 1, "relative_key_query": 2}.get(kind, 0)
        self.pre_norm = config.pre_norm
        self.heads = config.num_attention_heads
        self.dropout = config.hidden_dropout_prob
        self.attention_dropout = config.attention_probs_dropout_prob
        self.self = XmodProjections(config, bool(self.relative))
        self.output = XmodAttentionOutput(config)

    def forward(
        self,
        hidden: Tensor,
        mask: Mask | None,
        is_causal: bool = False,
        past: LayerCache | tuple[Tensor, ...] | None = None,
        encoder: tuple[Tensor, Tensor] | None = None,
        head_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """Run the block.

        Args:
            hidden: (B, S, D).
            mask: What each query may see.
            is_causal: Mask the future instead of ``mask``.
            past: Keys and values before.
            encoder: Keys and values (B, H, E, K) of an encoder, to attend to instead.
            head_mask: (H,).
            need_weights: Return the weights.

        Returns:
            (B, S, D); the (B, H, S, T) weights or ``None``; keys and values (B, H, T, K).
        """
        inner = self.output.LayerNorm(hidden) if self.pre_norm else hidden
        if encoder is not None:
            key, value = encoder
        else:
            key, value = self.project(inner)
            if isinstance(past, LayerCache):
                key, value = past.append(key, value)
            elif past is not None:
                key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        query = split_heads(self.self.query(inner), self.heads)
        mixed, weights = attend(
            query,
            key,
            value,
            mask,
            is_causal=is_causal,
            dropout=self.attention_dropout if self.training else 0.0,
            head_mask=head_mask,
            need_weights=need_weights,
            scores_bias=self._distances(query, key) if self.relative else None,
        )
        mixed = self.output.dense(merge_heads(mixed))
        hidden = hidden + F.dropout(mixed, self.dropout, self.training)
        return hidden if self.pre_norm else self.output.LayerNorm(hidden), weights, (key, value)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, S, K) of (B, S, D)."""
        return (
            split_heads(self.self.key(states), self.heads),
            split_heads(self.self.value(states), self.heads),
        )

    def _distances(self, query: Tensor, key: Tensor) -> Tensor:
        """Return (B, H, S, T) scores of how far apart queries and keys are.

        Shaw et al. 2018 for queries; Huang et al. 2020, method 4, for keys as well.
        """
        table = self.self.distance_embedding.weight
        queries, keys = query.shape[2], key.shape[2]
        places = torch.arange(keys, device=query.device)
        apart = places[keys - queries :, None] - places[None] + (table.shape[0] - 1) // 2
        vectors = table[apart]  # (S, T, K)
        scores = torch.einsum("bhsk,stk->bhst", query, vectors)
        if self.relative == 2:
            scores = scores + torch.einsum("bhtk,stk->bhst", key, vectors)
        return scores * query.shape[-1] ** -0.5


class XmodAdapter(nn.Module):
    """A bottleneck that belongs to one language (Pfeiffer et al. 2022, section 3).

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.dense1 = Linear(config.hidden_size, config.adapter_size)
        self.dense2 = Linear(config.adapter_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (..., D) of (..., D)."""
        return self.dense2(self.activation(self.dense1(hidden)))


class XmodIntermediate(nn.Module):
    """The first half of a feed-forward block.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.dense = Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, S, inner width) of (B, S, D)."""
        return self.activation(self.dense(hidden))


class XmodOutput(nn.Module):
    """The second half of a feed-forward block, and the adapters behind it.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        width = config.hidden_size
        self.dropout = config.hidden_dropout_prob
        self.reuses_norm = config.adapter_reuse_layer_norm
        self.norm_first = config.ln_before_adapter
        self.dense = Linear(config.intermediate_size, width)
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps)
        if config.adapter_layer_norm:
            self.adapter_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.adapter_modules = nn.ModuleDict({c: XmodAdapter(config) for c in config.languages})

    def forward(self, inner: Tensor, residual: Tensor, languages: Languages) -> Tensor:
        """Return (B, S, D) of (B, S, inner width) and the residual (B, S, D)."""
        hidden = residual + F.dropout(self.dense(inner), self.dropout, self.training)
        normed = hidden
        if hasattr(self, "adapter_layer_norm"):
            normed = self.adapter_layer_norm(hidden)
        elif self.reuses_norm:
            normed = self.LayerNorm(hidden)
        kept = normed if self.norm_first else hidden
        return kept + F.dropout(self.adapt(normed, languages), self.dropout, self.training)

    def adapt(self, hidden: Tensor, languages: Languages) -> Tensor:
        """Send (B, S, D) through the adapters of its languages."""
        if languages.ids is not None:
            return self._adapt_gathered(hidden, languages)
        if len(languages.present) == 1:
            return self.adapter_modules[languages.present[0]](hidden)
        rows = hidden.flatten(0, 1) if languages.by_token else hidden
        groups = rows[languages.order].split(languages.sizes)
        pairs = zip(languages.present, groups, strict=True)
        adapted = torch.cat([self.adapter_modules[code](group) for code, group in pairs])
        return adapted[languages.inverse].view_as(hidden)

    def _adapt_gathered(self, hidden: Tensor, languages: Languages) -> Tensor:
        """Do as ``adapt`` does with shapes that no language changes; every adapter is read."""
        adapters: list[Any] = [self.adapter_modules[code] for code in languages.present]

        def gather(part: str, leaf: str) -> Tensor:
            every = torch.stack([getattr(getattr(a, part), leaf) for a in adapters])
            return every[languages.ids]

        rows = hidden.flatten(0, 1)[:, None] if languages.by_token else hidden
        inner = torch.baddbmm(
            gather("dense1", "bias")[:, None], rows, gather("dense1", "weight").mT
        )
        inner = adapters[0].activation(inner)
        outer = torch.baddbmm(
            gather("dense2", "bias")[:, None], inner, gather("dense2", "weight").mT
        )
        return outer.view_as(hidden)


class XmodLayer(nn.Module):
    """One layer: attention, attention over an encoder where there is one, feed-forward, adapter.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = XmodAttention(config)
        if config.add_cross_attention:
            self.crossattention = XmodAttention(config, over_encoder=True)
        self.intermediate = XmodIntermediate(config)
        self.output = XmodOutput(config)

    def forward(
        self,
        hidden: Tensor,
        languages: Languages,
        mask: Mask | None,
        is_causal: bool = False,
        past: LayerCache | tuple[Tensor, ...] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_mask: Mask | None = None,
        head_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, ...]]:
        """Run the layer.

        Returns:
            Hidden states (B, S, D); weights (B, H, S, T) or ``None``; weights over the encoder
            (B, H, S, E) or ``None``; keys and values, the encoder's behind the own.
        """
        own = past[:2] if isinstance(past, tuple) else past
        hidden, weights, present = self.attention(
            hidden, mask, is_causal, own, None, head_mask, need_weights
        )
        cross_weights = None
        if encoder_hidden_states is not None:
            encoder = self._encoder_keys(encoder_hidden_states, past)
            hidden, cross_weights, _ = self.crossattention(
                hidden, encoder_mask, False, None, encoder, head_mask, need_weights
            )
            present = (*present, *encoder)
        normed = self.output.LayerNorm(hidden) if self.pre_norm else hidden
        hidden = self.output(self.intermediate(normed), hidden, languages)
        if not self.pre_norm:
            hidden = self.output.LayerNorm(hidden)
        return hidden, weights, cross_weights, present

    def _encoder_keys(self, encoder_hidden_states: Tensor, past: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder: those kept from an earlier step, or projected now."""
        if isinstance(past, tuple) and len(past) == 4:
            return past[2], past[3]
        if not isinstance(past, LayerCache):
            return self.crossattention.project(encoder_hidden_states)
        if not past.cross:
            past.cross.extend(self.crossattention.project(encoder_hidden_states))
        return past.cross[0], past.cross[1]
