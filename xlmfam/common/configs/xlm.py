"""Config of XLM (Conneau and Lample 2019, "Cross-lingual Language Model Pretraining")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from xlmfam.common.activations import ACTIVATIONS
from xlmfam.common.configs.base import PretrainedConfig
from xlmfam.common.errors import ConfigError

SUMMARY_TYPES = ("first", "last", "mean", "cls_index")


class XLMConfig(PretrainedConfig):
    """Settings of an XLM model.

    Args:
        vocab_size: Number of token ids.
        emb_dim: Width of the hidden states; the feed-forward layers are four times as wide.
        n_layers: Number of layers.
        n_heads: Attention heads of a layer.
        dropout: Probability of dropping a hidden value.
        attention_dropout: Probability of dropping an attention weight.
        gelu_activation: GELU in the feed-forward layers rather than ReLU.
        sinusoidal_embeddings: Positions are sines and cosines that are not learned.
        causal: Each token sees only those before it (a CLM model).
        asm: The vocabulary projection is an adaptive softmax (Grave et al. 2016).
        n_langs: Number of languages.
        use_lang_emb: Add an embedding of each token's language, where there are several.
        max_position_embeddings: Longest sequence.
        embed_init_std: Standard deviation of initial embeddings.
        layer_norm_eps: Added to the variance in layer norms.
        init_std: Standard deviation of the other initial weights.
        bos_index: Id of the token that begins a text.
        eos_index: Id of the token that ends one.
        pad_index: Id of the padding token.
        unk_index: Id of the unknown token.
        mask_index: Id of the token that hides a word.
        is_encoder: False for the decoder of a translation model, which also looks at an encoder.
        summary_type: What a classifier reads: the ``first`` or ``last`` position, the ``mean``,
            or ``cls_index``.
        summary_use_proj: Project what it reads.
        summary_activation: Name of the activation behind the projection, or ``None``.
        summary_proj_to_labels: Project to ``num_labels`` rather than to the hidden width.
        summary_first_dropout: Dropout before the projection.
        start_n_top: Starts that the question-answering beam keeps.
        end_n_top: Ends that it keeps for each start.
        mask_token_id: Appended at every step when a masked model generates.
        lang_id: Language of generated text where none is given; ``None`` adds none.
        pad_token_id: Fills rows that ended early.
        bos_token_id: The prompt where none is given.
        **kwargs: The aliases ``hidden_size``, ``num_attention_heads``, ``num_hidden_layers`` and
            ``n_words``; ``lang2id`` and ``id2lang``, the languages' names; ``asm_cutoffs`` and
            ``asm_div_value``; ``summary_last_dropout``; and see ``PretrainedConfig``.

    Raises:
        ConfigError: When the values cannot describe a model.
    """

    model_type = "xlm"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "emb_dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "n_words": "vocab_size",
    }
    language_argument: ClassVar[str] = "langs"  # of the models' calls
    # Settings that a config.json mentions only where they are set.
    lang2id: dict[str, int] | None = None
    id2lang: dict[int, str] | None = None
    asm_cutoffs: list[int] | None = None
    asm_div_value: float = 4.0
    summary_last_dropout: float = 0.0

    def __init__(
        self,
        vocab_size: int = 30145,
        emb_dim: int = 2048,
        n_layers: int = 12,
        n_heads: int = 16,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        gelu_activation: bool = True,
        sinusoidal_embeddings: bool = False,
        causal: bool = False,
        asm: bool = False,
        n_langs: int = 1,
        use_lang_emb: bool = True,
        max_position_embeddings: int = 512,
        embed_init_std: float = 2048**-0.5,
        layer_norm_eps: float = 1e-12,
        init_std: float = 0.02,
        bos_index: int = 0,
        eos_index: int = 1,
        pad_index: int = 2,
        unk_index: int = 3,
        mask_index: int = 5,
        is_encoder: bool = True,
        summary_type: str = "first",
        summary_use_proj: bool = True,
        summary_activation: str | None = None,
        summary_proj_to_labels: bool = True,
        summary_first_dropout: float = 0.1,
        start_n_top: int = 5,
        end_n_top: int = 5,
        mask_token_id: int = 0,
        lang_id: int | None = 0,
        pad_token_id: int | None = 2,
        bos_token_id: int | None = 0,
        **kwargs: Any,
    ):
        self.vocab_size = kwargs.pop("n_words", vocab_size)
        self.emb_dim = kwargs.pop("hidden_size", emb_dim)
        self.n_layers = kwargs.pop("num_hidden_layers", n_layers)
        self.n_heads = kwargs.pop("num_attention_heads", n_heads)
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.gelu_activation = gelu_activation
        self.sinusoidal_embeddings = sinusoidal_embeddings
        self.causal = causal
        self.asm = asm
        self.n_langs = n_langs
        self.use_lang_emb = use_lang_emb
        self.layer_norm_eps = layer_norm_eps
        self.bos_index = bos_index
        self.eos_index = eos_index
        self.pad_index = pad_index
        self.unk_index = unk_index
        self.mask_index = mask_index
        self.is_encoder = is_encoder
        self.max_position_embeddings = max_position_embeddings
        self.embed_init_std = embed_init_std
        self.init_std = init_std
        self.summary_type = summary_type
        self.summary_use_proj = summary_use_proj
        self.summary_activation = summary_activation
        self.summary_proj_to_labels = summary_proj_to_labels
        self.summary_first_dropout = summary_first_dropout
        self.start_n_top = start_n_top
        self.end_n_top = end_n_top
        self.mask_token_id = mask_token_id
        self.lang_id = lang_id
        self._set_languages(kwargs.pop("lang2id", None), kwargs.pop("id2lang", None))
        for name in ("asm_cutoffs", "asm_div_value", "summary_last_dropout"):
            if kwargs.get(name) is not None:
                setattr(self, name, kwargs[name])
            kwargs.pop(name, None)
        super().__init__(pad_token_id=pad_token_id, bos_token_id=bos_token_id, **kwargs)

    def _set_languages(
        self, lang2id: Mapping[str, int] | None, id2lang: Mapping[Any, str] | None
    ) -> None:
        """Keep the languages' names; a mapping that is not given is made of the other."""
        if lang2id is None and id2lang is None:
            return
        if lang2id is None:
            lang2id = {name: int(number) for number, name in (id2lang or {}).items()}
        self.lang2id = {str(name): int(number) for name, number in lang2id.items()}
        if id2lang is None:
            id2lang = {number: name for name, number in self.lang2id.items()}
        self.id2lang = {int(number): str(name) for number, name in id2lang.items()}

    @property
    def uses_languages(self) -> bool:
        """Whether tokens have language embeddings."""
        return self.n_langs > 1 and bool(self.use_lang_emb)

    @property
    def is_causal(self) -> bool:
        """Whether tokens see only those before them: in a causal model and in a decoder."""
        return bool(self.causal) or not self.is_encoder

    @property
    def asm_cuts(self) -> list[int]:
        """First id of each tail cluster of the adaptive softmax, and the vocabulary's size."""
        return [*(self.asm_cutoffs or ()), self.vocab_size]

    def half(self, is_encoder: bool) -> XLMConfig:
        """Return the config of the encoder or the decoder of a translation model."""
        return type(self).from_dict(self.to_dict(), is_encoder=is_encoder, causal=False)

    def kept_heads(self, layer: int) -> list[int]:
        """Return the numbers of the heads that a layer has left after pruning."""
        gone = self.pruned_heads.get(layer, [])
        return [head for head in range(self.n_heads) if head not in gone]

    def prune(self, heads: Mapping[int, Sequence[int]]) -> None:
        """Add ``heads`` by layer to ``pruned_heads``.

        Raises:
            ConfigError: When there is no such layer or head, or a layer would have none left; the
                config is then as it was.
        """
        before = self.pruned_heads
        merged = {int(layer): set(gone) for layer, gone in before.items()}
        for layer, gone in heads.items():
            merged[int(layer)] = merged.get(int(layer), set()) | set(gone)
        self.pruned_heads = {layer: sorted(gone) for layer, gone in sorted(merged.items()) if gone}
        try:
            self._check_pruned_heads()
        except ConfigError:
            self.pruned_heads = before
            raise

    def validate(self) -> None:
        """Check the values against each other (see the base class)."""
        super().validate()
        self.require_positive(
            "vocab_size", "emb_dim", "n_layers", "n_heads", "n_langs", "max_position_embeddings"
        )
        self.require_positive("start_n_top", "end_n_top")
        self.require_divisible("emb_dim", "n_heads")
        self.require_probability("dropout", "attention_dropout", "summary_first_dropout")
        self.require_probability("summary_last_dropout")
        if self.summary_type not in SUMMARY_TYPES:
            raise ConfigError(
                f"summary_type must be one of {', '.join(SUMMARY_TYPES)}; got {self.summary_type!r}"
            )
        if self.summary_activation and self.summary_activation not in ACTIVATIONS:
            raise ConfigError(
                f"summary_activation must be None or one of {', '.join(ACTIVATIONS)}; "
                f"got {self.summary_activation!r}"
            )
        if not 0 <= self.pad_index < self.vocab_size:
            raise ConfigError(f"pad_index must lie in [0, {self.vocab_size}), got {self.pad_index}")
        if self.asm:
            self._check_cutoffs()
        self._check_languages()
        self._check_pruned_heads()

    def _check_cutoffs(self) -> None:
        cuts = self.asm_cutoffs
        if not cuts or not all(isinstance(cut, int) for cut in cuts):
            raise ConfigError(f"asm=True needs asm_cutoffs, a list of ids; got {cuts!r}")
        if sorted(set(cuts)) != list(cuts) or cuts[0] < 1 or cuts[-1] >= self.vocab_size:
            raise ConfigError(
                f"asm_cutoffs must rise and lie between 0 and {self.vocab_size}, got {cuts!r}"
            )
        value = self.asm_div_value
        if value <= 0 or int(self.emb_dim // value ** len(cuts)) < 1:
            raise ConfigError(
                f"asm_div_value {value!r} leaves the last of {len(cuts)} clusters no "
                f"width: emb_dim is {self.emb_dim}"
            )

    def _check_languages(self) -> None:
        if self.uses_languages and self.lang2id:
            for name, number in self.lang2id.items():
                if not 0 <= number < self.n_langs:
                    raise ConfigError(
                        f"lang2id gives {name!r} the id {number}; there are {self.n_langs} "
                        "languages (n_langs)"
                    )
        given = self.lang_id
        if self.uses_languages and given is not None and not 0 <= given < self.n_langs:
            raise ConfigError(f"lang_id must lie in [0, {self.n_langs}), got {given}")

    def _check_pruned_heads(self) -> None:
        for layer, heads in self.pruned_heads.items():
            outside = [head for head in heads if not 0 <= head < self.n_heads]
            if not 0 <= int(layer) < self.n_layers or outside:
                raise ConfigError(
                    f"pruned_heads names layer {layer}, heads {list(heads)}; there are "
                    f"{self.n_layers} layers of {self.n_heads} heads"
                )
            if not self.kept_heads(int(layer)):
                raise ConfigError(f"pruned_heads leaves layer {layer} no head")
