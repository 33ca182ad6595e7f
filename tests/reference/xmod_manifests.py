"""Names, shapes, signatures and config defaults of the reference's X-MOD, as one JSON document."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import transformers
from golden_tools import signature
from safetensors import safe_open
from transformers import GenerationConfig, XmodConfig, modeling_outputs
from xmod_checkpoints import buildable

_TINY = {
    "vocab_size": 53,
    "hidden_size": 20,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "intermediate_size": 33,
    "max_position_embeddings": 31,
    "type_vocab_size": 6,
    "languages": ["en_XX", "de_DE", "sw_KE"],
    "default_language": "de_DE",
    "num_labels": 7,
}
_SHORT = {**_TINY, "num_hidden_layers": 1}
_DECODER = {**_SHORT, "is_decoder": True}
_BASE, _MASKED, _NEXT = "XmodModel", "XmodForMaskedLM", "XmodForCausalLM"
_LM = (_BASE, _MASKED)
_SEQUENCE = "XmodForSequenceClassification"
_ALL = (
    _BASE,
    _NEXT,
    _MASKED,
    _SEQUENCE,
    "XmodForMultipleChoice",
    "XmodForTokenClassification",
    "XmodForQuestionAnswering",
)
_OWN = {"adapter_layer_norm": True}
# Name: the options, and the classes that are listed. A name in parentheses is the base class
# without its pooling layer.
VARIANTS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "plain": (_TINY, (*_ALL, "XmodModel(add_pooling_layer=False)")),
    "one_language": ({**_SHORT, "languages": ["en_XX"], "default_language": "en_XX"}, _LM),
    "no_default_language": ({**_SHORT, "default_language": None}, _LM),
    "many_languages": (
        {**_SHORT, "languages": ["zh_TW", "ha_NG", "af_ZA", "ur_PK", "ur_PK_rom", "my_MM_zaw"]},
        _LM,
    ),
    "factor_with_remainder": ({**_SHORT, "adapter_reduction_factor": 3}, _LM),
    "factor_one": ({**_SHORT, "adapter_reduction_factor": 1}, _LM),
    "factor_float": ({**_SHORT, "adapter_reduction_factor": 2.5}, _LM),
    "factor_whole_float": ({**_SHORT, "adapter_reduction_factor": 4.0}, _LM),
    "factor_below_one": ({**_SHORT, "adapter_reduction_factor": 0.5}, _LM),
    "own_norm": ({**_SHORT, **_OWN}, _LM),
    "own_norm_no_reuse": ({**_SHORT, **_OWN, "adapter_reuse_layer_norm": False}, _LM),
    "no_reuse": ({**_SHORT, "adapter_reuse_layer_norm": False}, _LM),
    "norm_not_before": ({**_SHORT, "ln_before_adapter": False}, _LM),
    "pre_norm": ({**_SHORT, "pre_norm": True}, (*_LM, _NEXT, _SEQUENCE)),
    "pre_norm_own_norm": (
        {**_SHORT, "pre_norm": True, **_OWN, "ln_before_adapter": False},
        _LM,
    ),
    "relative_key": ({**_SHORT, "position_embedding_type": "relative_key"}, _LM),
    "relative_key_query": ({**_SHORT, "position_embedding_type": "relative_key_query"}, _LM),
    "decoder": (_DECODER, (_BASE, _NEXT, _MASKED)),
    "cross": ({**_DECODER, "add_cross_attention": True}, (_BASE, _NEXT, _MASKED)),
    "cross_relative": (
        {
            **_DECODER,
            "add_cross_attention": True,
            "pre_norm": True,
            "position_embedding_type": "relative_key",
        },
        (_BASE, _NEXT),
    ),
    "relu": ({**_SHORT, "hidden_act": "relu"}, (_MASKED,)),
    "silu": ({**_SHORT, "hidden_act": "silu"}, (_MASKED,)),
    "gelu_new": ({**_SHORT, "hidden_act": "gelu_new"}, (_MASKED,)),
    "untied": ({**_SHORT, "tie_word_embeddings": False}, (_MASKED, _NEXT)),
    "one_type": ({**_SHORT, "type_vocab_size": 1, "classifier_dropout": 0.3}, (_BASE, _SEQUENCE)),
}
_OUTPUTS = {
    "XmodModel": "BaseModelOutputWithPoolingAndCrossAttentions",
    "XmodForCausalLM": "CausalLMOutputWithCrossAttentions",
    "XmodForMaskedLM": "MaskedLMOutput",
    "XmodForSequenceClassification": "SequenceClassifierOutput",
    "XmodForMultipleChoice": "MultipleChoiceModelOutput",
    "XmodForTokenClassification": "TokenClassifierOutput",
    "XmodForQuestionAnswering": "QuestionAnsweringModelOutput",
}


def _listing(name: str, options: dict) -> dict:
    extra = {"num_labels": 2} if name == "XmodForQuestionAnswering" else {}
    config = XmodConfig(**buildable({**options, **extra}))
    cls, _, without = name.partition("(")
    model = getattr(transformers, cls)(config, **({"add_pooling_layer": False} if without else {}))
    entry: dict = {
        **({"options": extra} if extra else {}),
        "pt_state_dict": {k: list(v.shape) for k, v in model.state_dict().items()},
        "pt_parameters": sum(p.numel() for p in model.parameters()),
    }
    if "adapter_reduction_factor" in options:
        config.adapter_reduction_factor = options["adapter_reduction_factor"]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            entry["safetensors_missing"] = sorted(set(entry["pt_state_dict"]) - set(file.keys()))
    try:
        model.freeze_embeddings_and_language_adapters()
        entry["frozen"] = [k for k, p in model.named_parameters() if not p.requires_grad]
    except AttributeError:  # the base class cannot
        entry["frozen"] = None
    return entry


def _buildable_at_all(options: dict) -> bool:
    try:
        transformers.XmodModel(XmodConfig(**options))
    except TypeError:
        return False
    return True


def _variant(options: dict, classes: tuple[str, ...]) -> dict:
    entry: dict = {"options": options, "config": XmodConfig(**options).to_diff_dict()}
    if not _buildable_at_all(options):
        entry["notes"] = "The reference cannot build this; shapes are those of the whole quotient."
    entry["classes"] = {cls: _listing(cls, options) for cls in classes}
    return entry


def _fields(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(getattr(modeling_outputs, name))]


def manifest() -> dict:
    signatures = {name: signature(getattr(transformers, name).forward) for name in _ALL}
    signatures["XmodModel.__init__"] = signature(transformers.XmodModel.__init__)
    for name in ("set_default_language", "freeze_embeddings_and_language_adapters"):
        signatures[f"XmodModel.{name}"] = signature(getattr(transformers.XmodModel, name))
    signatures["XmodConfig.__init__"] = signature(XmodConfig.__init__)
    default = XmodConfig()
    ignored = getattr(XmodConfig, "keys_to_ignore_at_inference", [])
    return {
        "default_config": {
            "to_dict": default.to_dict(),
            "to_diff_dict": default.to_diff_dict(),
            "attribute_map": dict(XmodConfig.attribute_map),
            "keys_to_ignore_at_inference": list(ignored),
        },
        "generation_config": {
            "from_model": GenerationConfig.from_model_config(default).to_diff_dict()
        },
        "signatures": signatures,
        "outputs": {name: {"class": out, "fields": _fields(out)} for name, out in _OUTPUTS.items()},
        "variants": {name: _variant(*variant) for name, variant in VARIANTS.items()},
    }
