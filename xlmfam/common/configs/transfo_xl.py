"""Config of Transformer-XL.

Dai et al. 2019, "Attentive Language Models beyond a Fixed-Length Context".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from xlmfam.common.configs.base import PretrainedConfig
from xlmfam.common.errors import ConfigError

INITS = ("normal", "uniform")


class TransfoXLConfig(PretrainedConfig):
    """Settings of a Transformer-XL model; the defaults are those of the WikiText-103 checkpoint.

    Args:
        vocab_size: Number of token ids, most frequent words first.
        cutoffs: First id of each tail cluster of the vocabulary, ascending.
        d_model: Width of the hidden states (alias ``hidden_size``).
        d_embed: Width of the embeddings of the most frequent words.
        n_head: Attention heads of a layer (alias ``num_attention_heads``).
        d_head: Width of a head.
        d_inner: Width inside the feed-forward layers.
        div_val: Each cluster's embeddings are narrower than the last one's by this factor.
        pre_lnorm: Norms stand before the blocks rather than behind the residual sums.
        n_layer: Number of layers (alias ``num_hidden_layers``).
        mem_len: Hidden states of how many earlier tokens are kept.
        clamp_len: Distances beyond this count as this; none where it is not positive.
        same_length: Every token sees equally many tokens before it.
        proj_share_all_but_first: The embedding and the softmax share the projections of the tail
            clusters, and not the head's. Short for ``tie_projs``, which has a value for each.
        attn_type: Kind of attention; only 0, the paper's, is supported.
        sample_softmax: Number of samples of a sampled softmax; not supported when positive.
        adaptive: Embedding and softmax go by clusters; they do whatever this says.
        dropout: Probability of dropping a hidden value.
        dropatt: Probability of dropping an attention weight.
        untie_r: Each layer has biases of its own in the attention.
        init: How weights begin: ``normal`` or ``uniform``.
        init_range: Bound of uniform initial weights.
        proj_init_std: Standard deviation of the initial projections of clusters.
        init_std: Standard deviation of other initial weights.
        layer_norm_epsilon: Added to the variance in layer norms.
        eos_token_id: Id of the token that ends a line, and a text.
        **kwargs: See ``PretrainedConfig``.

    Raises:
        ConfigError: When the values cannot describe a model.
    """

    model_type: ClassVar[str] = "transfo-xl"
    attribute_map: ClassVar[dict[str, str]] = {
        "n_token": "vocab_size",
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 267735,
        cutoffs: Sequence[int] = (20000, 40000, 200000),
        d_model: int = 1024,
        d_embed: int = 1024,
        n_head: int = 16,
        d_head: int = 64,
        d_inner: int = 4096,
        div_val: int = 4,
        pre_lnorm: bool = False,
        n_layer: int = 18,
        mem_len: int = 1600,
        clamp_len: int = 1000,
        same_length: bool = True,
        proj_share_all_but_first: bool = True,
        attn_type: int = 0,
        sample_softmax: int = -1,
        adaptive: bool = True,
        dropout: float = 0.1,
        dropatt: float = 0.0,
        untie_r: bool = True,
        init: str = "normal",
        init_range: float = 0.01,
        proj_init_std: float = 0.01,
        init_std: float = 0.02,
        layer_norm_epsilon: float = 1e-5,
        eos_token_id: int | None = 0,
        **kwargs: Any,
    ):
        self.vocab_size = kwargs.pop("n_token", vocab_size)
        self.cutoffs = list(cutoffs)
        self.d_model = kwargs.pop("hidden_size", d_model)
        self.d_embed = d_embed
        self.n_head = kwargs.pop("num_attention_heads", n_head)
        self.d_head = d_head
        self.d_inner = d_inner
        self.div_val = div_val
        self.pre_lnorm = pre_lnorm
        self.n_layer = kwargs.pop("num_hidden_layers", n_layer)
        self.mem_len = mem_len
        self.clamp_len = clamp_len
        self.same_length = same_length
        self.attn_type = attn_type
        self.sample_softmax = sample_softmax
        self.adaptive = adaptive
        self.dropout = dropout
        self.dropatt = dropatt
        self.untie_r = untie_r
        self.init = init
        self.init_range = init_range
        self.proj_init_std = proj_init_std
        self.init_std = init_std
        self.layer_norm_epsilon = layer_norm_epsilon
        shares = [proj_share_all_but_first] * len(self.cutoffs)
        self.tie_projs = list(kwargs.pop("tie_projs", None) or [False, *shares])
        super().__init__(eos_token_id=eos_token_id, **kwargs)

    @property
    def proj_share_all_but_first(self) -> bool:
        """Whether all tail clusters share their projections; files hold ``tie_projs``."""
        return all(self.tie_projs[1:])

    @property
    def max_position_embeddings(self) -> int:
        """Texts may have any length."""
        return -1

    @property
    def cluster_ends(self) -> list[int]:
        """First id behind each cluster: the head's, then those of the tails."""
        return [*self.cutoffs, self.vocab_size]

    @property
    def cluster_bounds(self) -> list[tuple[int, int]]:
        """First id of each cluster, and the first behind it."""
        return list(zip([0, *self.cutoffs], self.cluster_ends, strict=True))

    def resized(self, vocab_size: int, cluster: int) -> TransfoXLConfig:
        """Return the config with a vocabulary of another size, one cluster taking the difference.

        Raises:
            ConfigError: For a cluster that is not there, or that would have no words left.
        """
        clusters = len(self.cluster_ends)
        if not -clusters <= cluster < clusters:
            raise ConfigError(f"there are clusters 0 to {clusters - 1}, and no {cluster}")
        cluster %= clusters
        first, end = self.cluster_bounds[cluster]
        more = vocab_size - self.vocab_size
        if end + more <= first:
            raise ConfigError(
                f"a vocabulary of {vocab_size} leaves cluster {cluster} no words: it has "
                f"{end - first} of {self.vocab_size}"
            )
        cutoffs = [cut + more * (place >= cluster) for place, cut in enumerate(self.cutoffs)]
        return type(self).from_dict(self.to_dict(), vocab_size=vocab_size, cutoffs=cutoffs)

    def ties_projection(self, cluster: int) -> bool:
        """Whether embedding and softmax share the projection of a cluster."""
        return cluster < len(self.tie_projs) and bool(self.tie_projs[cluster])

    def cluster_width(self, cluster: int) -> int:
        """Return the width of a cluster's embeddings."""
        return self.d_embed // self.div_val**cluster

    def validate(self) -> None:
        """Check the values against each other (see the base class)."""
        super().validate()
        self.require_positive(
            "vocab_size", "d_model", "d_embed", "n_head", "d_head", "d_inner", "n_layer", "div_val"
        )
        self.require_probability("dropout", "dropatt")
        if self.attn_type != 0:
            raise ConfigError(
                f"attn_type must be 0, the attention of the Transformer-XL paper; got "
                f"{self.attn_type!r}"
            )
        if self.sample_softmax > 0:
            raise ConfigError(
                f"sample_softmax is not supported: leave it at -1, got {self.sample_softmax!r}"
            )
        if self.init not in INITS:
            raise ConfigError(f"init must be one of {', '.join(INITS)}; got {self.init!r}")
        if isinstance(self.mem_len, bool) or not isinstance(self.mem_len, int) or self.mem_len < 0:
            raise ConfigError(f"mem_len must be 0 or a positive integer, got {self.mem_len!r}")
        if self.d_model % 2:
            raise ConfigError(f"d_model must be even, for sines and cosines; got {self.d_model}")
        self._check_clusters()

    def _check_clusters(self) -> None:
        ends = self.cluster_ends
        ascend = all(first < last for first, last in zip([0, *ends], ends, strict=False))
        if not all(isinstance(end, int) for end in ends) or not ascend:
            raise ConfigError(
                f"cutoffs must ascend between 0 and vocab_size={self.vocab_size}, "
                f"got {self.cutoffs!r}"
            )
        if self.cluster_width(len(self.cutoffs)) < 1:
            raise ConfigError(
                f"div_val {self.div_val} leaves the last of {len(ends)} clusters no width: "
                f"d_embed is {self.d_embed}"
            )
        if len(self.tie_projs) > len(ends):
            raise ConfigError(
                f"tie_projs has more values than there are clusters, {len(ends)}: "
                f"{self.tie_projs!r}"
            )
