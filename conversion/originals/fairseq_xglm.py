"""XGLM of fairseq: its checkpoints in, and back.

The names are ours but for the first word. What is said nowhere but in the settings: the number of
heads, the activation, whether embeddings are scaled, and the longest text.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from xlmfam.common.configs import XGLMConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import table_of
from xlmfam.conversion.formats.torch_file import TorchFile
from xlmfam.conversion.formats.torch_writer import tensor_of
from xlmfam.conversion.originals.base import Original
from xlmfam.conversion.originals.fairseq_common import (
    Names,
    Settings,
    finished,
    parameters_to_write,
    require,
    weights_of,
    write_checkpoint,
)
from xlmfam.conversion.targets import Work

HEAD = "XGLMForCausalLM"
LAYER = "decoder.layers."
EMBEDDING = "decoder.embed_tokens.weight"
VERSION = "decoder.version"
# fairseq's names of activations, and ours; the first of several is what comes back.
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "gelu_accurate": "gelu_accurate",
    "gelu_fast": "gelu_accurate",
    "tanh": "tanh",
    "linear": "linear",
}
_SAME_ACTIVATION = {
    "gelu_python": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_fast": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate",
}
_DROPPED = (
    ("decoder.version", "a number that tells old checkpoints of fairseq from new ones"),
    ("decoder.embed_positions.", "the sinusoidal table is computed, not stored"),
    ("decoder.mevo_layer.", "a layer of the code that trained it, which fairseq does not have"),
)


def matches(value: Any) -> bool:
    """Whether a file holds a language model of fairseq."""
    names = weights_of(value)
    return EMBEDDING in names and not any(name.startswith("encoder.") for name in names)


def open_original(file: TorchFile) -> Original:
    """Return the checkpoint of an open file.

    Args:
        file: One that `matches`.

    Raises:
        CheckpointError: It is damaged, or a language model of another kind than XGLM.
        ConfigError: Its settings do not fit together.
    """
    settings = Settings(file.path, file.value)
    names = Names(file, {name: (t, name) for name, t in weights_of(file.value).items()})
    _require_kind(names, settings)
    for start, reason in _DROPPED:
        names.drop(partial(_begins, start), reason)
    config = _config(names, settings)
    pieces = names.pieces(config, [HEAD], _original)
    return finished("fairseq-xglm", names, config, HEAD, pieces, "XGLMTokenizer", [])


def _begins(start: str, name: str) -> bool:
    return name.startswith(start)


def _original(name: str) -> str:
    """What fairseq calls a parameter."""
    if name.startswith("lm_head."):
        return f"decoder.output_projection.{name.removeprefix('lm_head.')}"
    return f"decoder.{name.removeprefix('model.')}"


def _require_kind(names: Names, settings: Settings) -> None:
    """Refuse what computes otherwise than XGLM; other layers show in the names."""
    path = names.file.path
    if "decoder.embed_positions.weight" in names.tensors:
        raise CheckpointError(f"{path}: learns its positions; XGLM computes them")
    if "decoder.layer_norm.weight" not in names.tensors:
        raise CheckpointError(f"{path}: lacks decoder.layer_norm.weight: XGLM has its norms before")
    if settings.flag("no_token_positional_embeddings"):
        raise CheckpointError(f"{path}: has no positions (no_token_positional_embeddings)")


def _config(names: Names, settings: Settings) -> XGLMConfig:
    vocab_size, width = names.shape(EMBEDDING)
    longest = next(
        (key for key in ("max_target_positions", "tokens_per_sample") if settings.get(key)),
        "max_target_positions",
    )
    alone = _original("lm_head.weight") not in names.tensors
    return XGLMConfig(
        vocab_size=vocab_size,
        d_model=width,
        ffn_dim=names.shape(f"{LAYER}0.fc1.weight")[0],
        num_layers=names.layers(LAYER),
        attention_heads=settings.count("decoder_attention_heads"),
        max_position_embeddings=settings.count(longest, 1024),
        activation_function=settings.one_of("activation_fn", ACTIVATIONS, "relu"),
        dropout=settings.number("dropout", 0.1),
        attention_dropout=settings.number("attention_dropout", 0.0),
        activation_dropout=settings.number("activation_dropout", 0.0),
        layerdrop=settings.number("decoder_layerdrop", 0.0),
        scale_embedding=not settings.flag("no_scale_embedding"),
        tie_word_embeddings=settings.flag("share_decoder_input_output_embed", alone),
    )


def write_original(work: Work) -> None:
    """Write a checkpoint that fairseq's ``TransformerLanguageModel`` reads.

    Args:
        work: What to write.

    Raises:
        CheckpointError: fairseq has no such model.
    """
    config = work.config
    activation = _SAME_ACTIVATION.get(config.activation_function, config.activation_function)
    if activation not in ACTIVATIONS:
        require(config, activation_function=(*ACTIVATIONS, *_SAME_ACTIVATION))
    require(config, add_cross_attention=False, pad_token_id=1)
    if work.head != HEAD:
        require(config, tie_word_embeddings=True)
    found = parameters_to_write(work)
    tensors = {VERSION: tensor_of(np.array([3.0], np.float32))}
    for parameter in table_of("xglm").expand(config, HEAD).values():
        tensors[_original(parameter.full_name)] = found[parameter.tied_to or parameter.full_name]
    task = {"_name": "language_modeling", "tokens_per_sample": config.max_position_embeddings}
    write_checkpoint(work, _model(config, activation), task, tensors, config.vocab_size - 4)


def _model(config: Any, activation: str) -> dict[str, Any]:
    """The settings of the model, as fairseq calls them."""
    return {
        "_name": "transformer_lm",
        "activation_fn": activation,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "decoder_layerdrop": config.layerdrop,
        "decoder_embed_dim": config.d_model,
        "decoder_input_dim": config.d_model,
        "decoder_output_dim": config.d_model,
        "decoder_ffn_embed_dim": config.ffn_dim,
        "decoder_layers": config.num_layers,
        "decoder_attention_heads": config.attention_heads,
        "decoder_normalize_before": True,
        "no_scale_embedding": not config.scale_embedding,
        "share_decoder_input_output_embed": config.tie_word_embeddings,
        "tokens_per_sample": config.max_position_embeddings,
        "max_target_positions": config.max_position_embeddings,
        "add_bos_token": False,
        "tpu": False,
    }
