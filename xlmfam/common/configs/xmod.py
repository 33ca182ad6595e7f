"""Config of X-MOD (Pfeiffer et al. 2022, "Lifting the Curse of Multilinguality")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from xlmfam.common.activations import ACTIVATIONS
from xlmfam.common.configs.base import PretrainedConfig
from xlmfam.common.errors import ConfigError, XlmfamError

BEGINNINGS = ("random", "mean")  # of a new adapter
POSITION_TYPES = ("absolute", "relative_key", "relative_key_query")


class XmodConfig(PretrainedConfig):
    """Settings of an X-MOD model.

    Args:
        vocab_size: Number of token ids.
        hidden_size: Width of the hidden states.
        num_hidden_layers: Number of layers.
        num_attention_heads: Attention heads of a layer.
        intermediate_size: Width inside the feed-forward layers.
        hidden_act: Name of their activation, and of the adapters'.
        hidden_dropout_prob: Probability of dropping a hidden value.
        attention_probs_dropout_prob: Probability of dropping an attention weight.
        max_position_embeddings: Rows of the position table; the first ``pad_token_id + 1`` of
            them are no positions of tokens.
        type_vocab_size: Number of token types.
        initializer_range: Standard deviation of initial weights.
        layer_norm_eps: Added to the variance in layer norms.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the token that begins a text.
        eos_token_id: Id of the token that ends one.
        position_embedding_type: ``absolute``, or distances in the attention scores:
            ``relative_key`` (Shaw et al. 2018), ``relative_key_query`` (Huang et al. 2020).
        use_cache: Return keys and values by default (decoders).
        classifier_dropout: Dropout before a classifier; ``hidden_dropout_prob`` where ``None``.
        pre_norm: Norms stand before the blocks rather than behind the residual sums.
        adapter_reduction_factor: The adapters are ``hidden_size`` divided by this wide.
        adapter_layer_norm: Adapters have a norm of their own before them.
        adapter_reuse_layer_norm: The feed-forward block's norm stands before them too.
        ln_before_adapter: The residual an adapter adds to is what the norm before it gave.
        languages: Codes of the languages that have adapters.
        default_language: Language of inputs that do not say theirs.
        **kwargs: See ``PretrainedConfig``; ``is_decoder``, ``add_cross_attention`` among them.

    Raises:
        ConfigError: When the values cannot describe a model.
    """

    model_type = "xmod"
    attribute_map: ClassVar[dict[str, str]] = {}
    language_argument: ClassVar[str] = "lang_ids"  # of the models' calls

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int = 1,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 2,
        position_embedding_type: str = "absolute",
        use_cache: bool = True,
        classifier_dropout: float | None = None,
        pre_norm: bool = False,
        adapter_reduction_factor: float = 2,
        adapter_layer_norm: bool = False,
        adapter_reuse_layer_norm: bool = True,
        ln_before_adapter: bool = True,
        languages: Sequence[str] = ("en_XX",),
        default_language: str | None = None,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_act = hidden_act
        self.intermediate_size = intermediate_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.position_embedding_type = position_embedding_type
        self.use_cache = use_cache
        self.classifier_dropout = classifier_dropout
        self.pre_norm = pre_norm
        self.adapter_reduction_factor = adapter_reduction_factor
        self.adapter_layer_norm = adapter_layer_norm
        self.adapter_reuse_layer_norm = adapter_reuse_layer_norm
        self.ln_before_adapter = ln_before_adapter
        self.languages = list(languages)
        self.default_language = default_language
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            **kwargs,
        )

    @property
    def adapter_size(self) -> int:
        """Width inside an adapter."""
        return int(self.hidden_size // self.adapter_reduction_factor)

    @property
    def longest_text(self) -> int:
        """Most tokens of a text: the first rows of the position table are none of tokens."""
        if self.position_embedding_type != "absolute":
            return self.max_position_embeddings
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def is_causal(self) -> bool:
        """Whether tokens see only those before them: in a decoder."""
        return bool(self.is_decoder)

    @property
    def lang_id(self) -> str | None:
        """Language of texts that do not say theirs."""
        return self.default_language

    @property
    def lang2id(self) -> dict[str, int]:
        """Number of each language: its place in ``languages``."""
        return {code: number for number, code in enumerate(self.languages)}

    @property
    def n_langs(self) -> int:
        """Number of languages."""
        return len(self.languages)

    @property
    def uses_languages(self) -> bool:
        """Whether tokens have a language: they always do."""
        return True

    def check_new_language(self, code: str, init_from: str) -> None:
        """Raise ``XlmfamError`` unless ``code`` can be added, its adapter begun as said."""
        if code in self.languages:
            raise XlmfamError(f"there is a language {code!r} already")
        if not isinstance(code, str) or not code or set("./") & set(code):
            raise XlmfamError(f"a language code is a string without '.' and '/', got {code!r}")
        if init_from not in (*BEGINNINGS, *self.languages):
            raise XlmfamError(
                f"init_from must be one of {', '.join(BEGINNINGS)} or a language that there is: "
                f"{', '.join(self.languages)}; got {init_from!r}"
            )

    def without(self, codes: Sequence[str]) -> list[str]:
        """Return the languages that stay when ``codes`` go.

        Raises:
            XlmfamError: When one of them is not there, or none would stay.
        """
        unknown = [code for code in codes if code not in self.languages]
        if unknown:
            known = ", ".join(self.languages)
            raise XlmfamError(f"unknown language {unknown[0]!r}; this model knows {known}")
        kept = [code for code in self.languages if code not in codes]
        if not kept:
            raise XlmfamError("one language at least must stay")
        return kept

    def validate(self) -> None:
        """Check the values against each other (see the base class)."""
        super().validate()
        self.require_positive(
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        )
        self.require_divisible("hidden_size", "num_attention_heads")
        self.require_probability("hidden_dropout_prob", "attention_probs_dropout_prob")
        if self.classifier_dropout is not None:
            self.require_probability("classifier_dropout")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(
                f"hidden_act must be one of {', '.join(ACTIVATIONS)}; got {self.hidden_act!r}"
            )
        if self.position_embedding_type not in POSITION_TYPES:
            raise ConfigError(
                f"position_embedding_type must be one of {', '.join(POSITION_TYPES)}; "
                f"got {self.position_embedding_type!r}"
            )
        if self.adapter_reduction_factor <= 0 or self.adapter_size < 1:
            raise ConfigError(
                f"adapter_reduction_factor {self.adapter_reduction_factor!r} leaves adapters no "
                f"width: hidden_size is {self.hidden_size}"
            )
        self._check_languages()

    def _check_languages(self) -> None:
        codes = self.languages
        if not codes or len(set(codes)) != len(codes):
            raise ConfigError(f"languages must be different codes, at least one; got {codes!r}")
        wrong = [code for code in codes if not isinstance(code, str) or set("./") & set(code)]
        if wrong:
            raise ConfigError(f"a language code must be a string without '.' and '/': {wrong[0]!r}")
