"""X-MOD of fairseq: its checkpoints in, and back."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.configs import XmodConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.logging import get_logger
from xlmfam.common.parameters import Kind, table_of
from xlmfam.conversion.formats.torch_file import TorchFile
from xlmfam.conversion.formats.torch_writer import Namespace, Tensor, tensor_of
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

ENCODER = "encoder.sentence_encoder"
LAYER = f"{ENCODER}.layers."
MASKED, CLASSES = "XmodForMaskedLM", "XmodForSequenceClassification"
TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"
POSITIONS = "roberta.embeddings.position_embeddings.weight"
CLASSIFIER = "sentence_classification_head"  # what fairseq calls one that got no name
DEFAULT_LANGUAGE = "en_XX"  # of texts that do not say theirs
EPSILON = 1e-5
# fairseq cuts these off the codes of languages before it looks for their adapters.
SUFFIXES = ("_rom", "_zaw")
_ADAPTER = re.compile(re.escape(LAYER) + r"\d+\.adapter_modules\.([^.]+)\.")
_HEAD = re.compile(r"classification_heads\.([^.]+)\.")
# Today's names of what older checkpoints call otherwise.
_OLDER = (
    (re.compile(r"^decoder\."), "encoder."),
    (re.compile(r"^encoder\.(?=embed_|layers\.|layer_norm\.|layernorm_|emb_layer_|version$)"),
     f"{ENCODER}."),
    (re.compile(r"\.emb_layer_norm\."), ".layernorm_embedding."),
    (re.compile(r"\.layer_norms\.0\."), ".self_attn_layer_norm."),
    (re.compile(r"\.layer_norms\.1\."), ".final_layer_norm."),
)  # fmt: skip
# Ours, and theirs. Names of parameters end in what stands here and ``weight`` or ``bias``.
_OUTSIDE = {
    "roberta.embeddings.word_embeddings": f"{ENCODER}.embed_tokens",
    "roberta.embeddings.position_embeddings": f"{ENCODER}.embed_positions",
    "roberta.embeddings.LayerNorm": f"{ENCODER}.layernorm_embedding",
    "roberta.encoder.LayerNorm": f"{ENCODER}.layer_norm",
    "lm_head": "encoder.lm_head",
    "lm_head.decoder": "encoder.lm_head",
    "lm_head.dense": "encoder.lm_head.dense",
    "lm_head.layer_norm": "encoder.lm_head.layer_norm",
}
_IN_LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
    "output.adapter_layer_norm": "adapter_layer_norm",
}
_IN_ADAPTER = {"dense1": "fc1", "dense2": "fc2"}
# What an architecture means where settings are silent: heads, norm before, bottleneck, ...
_POST_NORM = (12, False, 2, False, True, True)
_PRE_NORM = (16, True, 4, True, False, False)

logger = get_logger(__name__)


def matches(value: Any) -> bool:
    """Whether a file holds a model of fairseq with adapters for languages."""
    return any(".adapter_modules." in name for name in weights_of(value))


def open_original(file: TorchFile) -> Original:
    """Return the checkpoint of an open file.

    Args:
        file: One that `matches`.

    Raises:
        CheckpointError: It is damaged, or no X-MOD as fairseq has it.
        ConfigError: Its settings do not fit together.
    """
    settings = Settings(file.path, file.value)
    names = _todays_names(file)
    notes: list[str] = []
    classifier = _classifier(names, notes)
    _drop_what_is_not_used(names, notes)
    config = _config(names, settings, classifier)
    heads = [MASKED] if classifier is None else [CLASSES, MASKED]

    def original(name: str) -> str | None:
        return _original(name, classifier)

    dtype = names.tensors[f"{ENCODER}.embed_tokens.weight"][0].spec.dtype
    types = {TOKEN_TYPES: TensorSpec((1, config.hidden_size), dtype)}
    pieces = names.pieces(config, heads, original, types)
    if settings.number("activation_dropout", 0.0):
        notes.append("activation_dropout is not carried over: it has an effect in training only")
    return finished("fairseq-xmod", names, config, heads[0], pieces, "XLMRobertaTokenizer", notes)


def _todays_names(file: TorchFile) -> Names:
    tensors = {}
    for stored, tensor in weights_of(file.value).items():
        name = stored
        for old, new in _OLDER:
            name = old.sub(new, name)
        owner, joined, kind = name.rpartition("in_proj_")
        if not joined:
            tensors[name] = (tensor, stored)
            continue
        # Queries, keys and values used to be one tensor.
        rows = tensor.shape[0] // 3 if tensor.shape else 0
        for part, projection in enumerate("qkv"):
            if not rows or tensor.shape[0] != 3 * rows:
                raise CheckpointError(f"{file.path}: {stored} has the shape {tensor.shape}")
            window = replace(
                tensor,
                offset=tensor.offset + part * rows * tensor.strides[0],
                shape=(rows, *tensor.shape[1:]),
            )
            tensors[f"{owner}{projection}_proj.{kind}"] = (window, f"{stored}[{part}]")
    return Names(file, tensors)


def _classifier(names: Names, notes: list[str]) -> str | None:
    """Choose the classification head; the others are dropped."""
    found = list(dict.fromkeys(m[1] for m in map(_HEAD.match, names.tensors) if m))
    if not found:
        return None
    chosen = CLASSIFIER if CLASSIFIER in found else found[0]
    for other in (name for name in found if name != chosen):
        names.drop(
            partial(_contains, f"classification_heads.{other}."),
            f"a model has one classification head, and this one has {chosen}",
        )
        notes.append(f"of the classification heads {', '.join(found)}, {chosen} is taken")
    return chosen


def _contains(part: str, name: str) -> bool:
    return part in name


def _drop_what_is_not_used(names: Names, notes: list[str]) -> None:
    version = "a number that tells old checkpoints of fairseq from new ones"
    names.drop(lambda name: name == f"{ENCODER}.version", version)
    for code in _languages(names):
        if any(suffix in code for suffix in SUFFIXES):
            names.drop(
                partial(_contains, f".adapter_modules.{code}."),
                f"fairseq never reads it: for {code} it looks for {_without_suffixes(code)}",
            )
            notes.append(f"{code} is read as {_without_suffixes(code)}, as in fairseq")


def _without_suffixes(code: str) -> str:
    for suffix in SUFFIXES:
        code = code.replace(suffix, "")
    return code


def _languages(names: Names) -> list[str]:
    return list(dict.fromkeys(m[1] for m in map(_ADAPTER.match, names.tensors) if m))


def _config(names: Names, settings: Settings, classifier: str | None) -> XmodConfig:
    vocab_size, width = names.shape(f"{ENCODER}.embed_tokens.weight")
    heads, before, bottleneck, own, reused, residual = (
        _PRE_NORM if settings.architecture().endswith("prenorm") else _POST_NORM
    )
    languages = _languages(names)
    settings.one_of("activation_fn", {"gelu": "gelu"}, "gelu")
    labels: dict[str, Any] = {}
    if classifier is not None:
        settings.one_of("pooler_activation_fn", {"tanh": "tanh"}, "tanh")
        labels["num_labels"] = names.shape(f"classification_heads.{classifier}.out_proj.weight")[0]
    return XmodConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=names.layers(LAYER),
        num_attention_heads=settings.count("encoder_attention_heads", heads),
        intermediate_size=names.shape(f"{LAYER}0.fc1.weight")[0],
        hidden_act="gelu",
        hidden_dropout_prob=settings.number("dropout", 0.1),
        attention_probs_dropout_prob=settings.number("attention_dropout", 0.1),
        classifier_dropout=settings.number("pooler_dropout", 0.0),
        max_position_embeddings=names.shape(f"{ENCODER}.embed_positions.weight")[0],
        type_vocab_size=1,
        layer_norm_eps=EPSILON,
        pre_norm=settings.flag("encoder_normalize_before", before),
        adapter_reduction_factor=settings.count("bottleneck", bottleneck),
        adapter_layer_norm=settings.flag("adapter_layer_norm", own),
        adapter_reuse_layer_norm=settings.flag("adapter_reuse_layer_norm", reused),
        ln_before_adapter=settings.flag("ln_before_adapter", residual),
        languages=languages,
        default_language=DEFAULT_LANGUAGE if DEFAULT_LANGUAGE in languages else None,
        tie_word_embeddings=not settings.flag("untie_weights_roberta"),
        **labels,
    )


def _original(name: str, classifier: str | None) -> str | None:
    """What fairseq calls a parameter, if it has it."""
    owner, _, kind = name.rpartition(".")
    if owner in _OUTSIDE:
        return f"{_OUTSIDE[owner]}.{kind}"
    if owner.startswith("classifier.") and classifier is not None:
        return f"classification_heads.{classifier}.{owner.removeprefix('classifier.')}.{kind}"
    layer = re.match(r"roberta\.encoder\.layer\.(\d+)\.(.+)", owner)
    if layer is None:
        return None
    adapter = re.match(r"output\.adapter_modules\.(.+)\.(\w+)", layer[2])
    if adapter is not None:
        inside = f"adapter_modules.{adapter[1]}.{_IN_ADAPTER[adapter[2]]}"
    else:
        inside = _IN_LAYER.get(layer[2], "")
    return f"{LAYER}{layer[1]}.{inside}.{kind}" if inside else None


# -- the way back -----------------------------------------------------------------------------


def write_original(work: Work) -> None:
    """Write a checkpoint that fairseq's ``XMODModel`` reads.

    Args:
        work: What to write.

    Raises:
        CheckpointError: fairseq has no such model.
    """
    config = work.config
    assert isinstance(config, XmodConfig)
    _require_possible(config, work.head)
    found = parameters_to_write(work)
    found[POSITIONS] = _positions(found, work)
    heads = [MASKED]
    if work.head != MASKED:
        # fairseq builds this head in any case, and reads no checkpoint without it.
        found |= _head_of_no_use(config, found[POSITIONS].spec.dtype)
        config = XmodConfig.from_dict(config.to_dict(), tie_word_embeddings=True)
        heads = [work.head, MASKED]
    tensors = {f"{ENCODER}.version": tensor_of(np.array([3.0], np.float32))}
    for head in heads:
        for parameter in table_of("xmod").expand(config, head).values():
            name = _original(parameter.full_name, CLASSIFIER)
            if name is not None:
                tensors[name] = found[parameter.tied_to or parameter.full_name]
    task = {"_name": "masked_lm", "tokens_per_sample": _longest(config)}
    # Of a dict, fairseq's encoder would take only what it knows itself: no adapters.
    write_checkpoint(work, Namespace(_model(config)), task, tensors, config.vocab_size - 5)


def _require_possible(config: XmodConfig, head: str) -> None:
    if head not in (MASKED, CLASSES):
        raise CheckpointError(
            f"fairseq's X-MOD has the classes {MASKED} and {CLASSES}; a {head} cannot be "
            "written for it"
        )
    require(
        config,
        hidden_act=("gelu", "gelu_python"),
        layer_norm_eps=EPSILON,
        position_embedding_type="absolute",
        pad_token_id=1,
        is_decoder=False,
        add_cross_attention=False,
    )
    hidden = [code for code in config.languages if code != _without_suffixes(code)]
    if hidden:
        raise CheckpointError(
            f"fairseq would never read the adapters of {', '.join(hidden)}: it cuts "
            f"{' and '.join(SUFFIXES)} off the codes of languages"
        )
    if config.hidden_size // _bottleneck(config) != config.adapter_size:
        raise CheckpointError(
            f"fairseq's adapters are hidden_size divided by a whole number wide; those of this "
            f"config are {config.adapter_size} of {config.hidden_size}"
        )


def _bottleneck(config: XmodConfig) -> int:
    factor = config.adapter_reduction_factor
    return int(factor) if factor == int(factor) else config.hidden_size // config.adapter_size


def _positions(found: dict[str, Tensor], work: Work) -> Tensor:
    """The position table; what the one token type adds goes into it, for fairseq has no types."""
    stored = found[POSITIONS]
    types = _all_of(found[TOKEN_TYPES])
    if np.any(types[1:]):
        raise CheckpointError(
            f"this X-MOD has {len(types)} token types, and fairseq's has none: it cannot be "
            "written for it"
        )
    if not np.any(types):
        return stored
    logger.warning("fairseq has no token types: what the only one adds goes into the positions")
    positions = _all_of(stored)
    first = work.config.pad_token_id + 1  # the rows before it are no positions of tokens
    positions[first:] = (positions[first:].astype(np.float32) + types[0]).astype(positions.dtype)
    return tensor_of(positions)


def _all_of(tensor: Tensor) -> np.ndarray:
    return np.array(np.concatenate(list(tensor.blocks())))


def _head_of_no_use(config: XmodConfig, dtype: np.dtype) -> dict[str, Tensor]:
    """A head for masked words that says nothing: zeros behind a norm."""
    return {
        parameter.full_name: tensor_of(
            np.full(parameter.shape, parameter.kind is Kind.NORM_SCALE, dtype)
        )
        for parameter in table_of("xmod").expand(config, MASKED).values()
        if parameter.full_name.startswith("lm_head.") and parameter.tied_to is None
    }


def _longest(config: XmodConfig) -> int:
    return config.max_position_embeddings - config.pad_token_id - 1


def _model(config: XmodConfig) -> dict[str, Any]:
    """The settings of the model, as fairseq calls them."""
    dropout = config.classifier_dropout
    return {
        "_name": "xmod_large_prenorm" if config.pre_norm else "xmod_base",
        "activation_fn": "gelu",
        "pooler_activation_fn": "tanh",
        "dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "activation_dropout": 0.0,
        "pooler_dropout": config.hidden_dropout_prob if dropout is None else dropout,
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "encoder_normalize_before": config.pre_norm,
        "encoder_learned_pos": True,
        "layernorm_embedding": True,
        "no_scale_embedding": True,
        "max_positions": _longest(config),
        "untie_weights_roberta": not config.tie_word_embeddings,
        "adapter_modules": True,
        "ffn_modules": False,
        "adapter_layer_norm": config.adapter_layer_norm,
        "adapter_reuse_layer_norm": config.adapter_reuse_layer_norm,
        "ln_before_adapter": config.ln_before_adapter,
        "bottleneck": _bottleneck(config),
        "languages": list(config.languages),
        "load_checkpoint_heads": True,
    }
