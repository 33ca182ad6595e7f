"""The config of XGLM (Lin et al. 2021, "Few-shot Learning with Multilingual Language Models")."""

from __future__ import annotations

from typing import Any, ClassVar

from xlmfam.common.activations import ACTIVATIONS
from xlmfam.common.configs.base import PretrainedConfig
from xlmfam.common.errors import ConfigError


class XGLMConfig(PretrainedConfig):
    """Settings of an XGLM model; the defaults are those of the 564M checkpoint.

    Args:
        vocab_size: Number of token ids.
        max_position_embeddings: Length of the initial sinusoidal table and longest sequence
            that generation plans for; longer inputs extend the table.
        d_model: Width of the hidden states (alias ``hidden_size``).
        ffn_dim: Width inside the feed-forward blocks.
        num_layers: Number of layers (alias ``num_hidden_layers``).
        attention_heads: Number of attention heads (alias ``num_attention_heads``).
        activation_function: Name of the feed-forward activation.
        dropout: Dropout probability of embeddings and block outputs.
        attention_dropout: Dropout probability of attention weights.
        activation_dropout: Dropout probability inside the feed-forward blocks.
        layerdrop: Probability of skipping a whole layer in training.
        init_std: Standard deviation of initial weights.
        scale_embedding: Multiply token embeddings by ``sqrt(d_model)``.
        use_cache: Whether calls return keys and values by default.
        decoder_start_token_id: First token of a generated sequence.
        pad_token_id: Padding token.
        bos_token_id: Token that begins a sequence where no prompt is given.
        eos_token_id: Token that ends a sequence; also the tokenizer's prefix.
        **kwargs: Common settings, e.g. ``add_cross_attention``, ``tie_word_embeddings``.

    Raises:
        ConfigError: When the values cannot describe a model.
    """

    model_type: ClassVar[str] = "xglm"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_attention_heads": "attention_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
    }

    def __init__(
        self,
        vocab_size: int = 256008,
        max_position_embeddings: int = 2048,
        d_model: int = 1024,
        ffn_dim: int = 4096,
        num_layers: int = 24,
        attention_heads: int = 16,
        activation_function: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layerdrop: float = 0.0,
        init_std: float = 0.02,
        scale_embedding: bool = True,
        use_cache: bool = True,
        decoder_start_token_id: int = 2,
        pad_token_id: int = 1,
        bos_token_id: int = 0,
        eos_token_id: int | list[int] = 2,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.d_model = kwargs.pop("hidden_size", d_model)
        self.ffn_dim = ffn_dim
        self.num_layers = kwargs.pop("num_hidden_layers", num_layers)
        self.attention_heads = kwargs.pop("num_attention_heads", attention_heads)
        self.activation_function = activation_function
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.layerdrop = layerdrop
        self.init_std = init_std
        self.scale_embedding = scale_embedding
        self.use_cache = use_cache
        super().__init__(
            decoder_start_token_id=decoder_start_token_id,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            **kwargs,
        )

    def validate(self) -> None:
        """Check the values against each other (see the base class)."""
        super().validate()
        self.require_positive(
            "vocab_size",
            "max_position_embeddings",
            "d_model",
            "ffn_dim",
            "num_layers",
            "attention_heads",
        )
        self.require_divisible("d_model", "attention_heads")
        self.require_probability("dropout", "attention_dropout", "activation_dropout", "layerdrop")
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"activation_function must be one of {', '.join(ACTIVATIONS)}; "
                f"got {self.activation_function!r}"
            )
        pad = self.pad_token_id
        if pad is not None and not 0 <= pad < self.vocab_size:
            raise ConfigError(f"pad_token_id must lie in [0, {self.vocab_size}), got {pad}")
