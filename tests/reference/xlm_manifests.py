"""Names, shapes, signatures and config defaults of the reference's XLM, as one JSON document."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
import transformers
from golden_tools import h5_listing, signature
from safetensors import safe_open
from transformers import GenerationConfig, XLMConfig, modeling_outputs
from transformers.models.xlm import modeling_xlm

_TINY = {
    "vocab_size": 53,
    "emb_dim": 20,
    "n_heads": 5,
    "n_layers": 2,
    "max_position_embeddings": 31,
    "n_langs": 3,
    "num_labels": 7,
}
_SHORT = {**_TINY, "n_layers": 1}
_LM = ("XLMModel", "XLMWithLMHeadModel")
_SUMMARY = ("XLMForSequenceClassification",)
_ALL = (
    *_LM,
    "XLMForSequenceClassification",
    "XLMForMultipleChoice",
    "XLMForTokenClassification",
    "XLMForQuestionAnsweringSimple",
    "XLMForQuestionAnswering",
)
_ADAPTIVE = {"asm": True, "asm_cutoffs": [11, 29], "asm_div_value": 2.0}
# Name: the options, and the classes that are listed.
VARIANTS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "plain": (_TINY, _ALL),
    "one_language": ({**_SHORT, "n_langs": 1}, _LM),
    "no_language_embeddings": ({**_SHORT, "use_lang_emb": False}, _LM),
    "sinusoidal": ({**_SHORT, "sinusoidal_embeddings": True}, _LM),
    "causal": ({**_SHORT, "causal": True}, _LM),
    "untied": ({**_SHORT, "tie_word_embeddings": False}, _LM[1:]),
    "adaptive": ({**_SHORT, **_ADAPTIVE}, _LM[1:]),
    "adaptive_untied": ({**_SHORT, **_ADAPTIVE, "tie_word_embeddings": False}, _LM[1:]),
    "summary_without_projection": ({**_SHORT, "summary_use_proj": False}, _SUMMARY),
    "summary_not_to_labels": ({**_SHORT, "summary_proj_to_labels": False}, _SUMMARY),
}
_OUTPUTS = {
    "XLMModel": "BaseModelOutput",
    "XLMWithLMHeadModel": "MaskedLMOutput",
    "XLMForSequenceClassification": "SequenceClassifierOutput",
    "XLMForMultipleChoice": "MultipleChoiceModelOutput",
    "XLMForTokenClassification": "TokenClassifierOutput",
    "XLMForQuestionAnsweringSimple": "QuestionAnsweringModelOutput",
    "XLMForQuestionAnswering": "XLMForQuestionAnsweringOutput",
}


def _listing(name: str, options: dict) -> dict:
    extra = {"num_labels": 2} if name == "XLMForQuestionAnsweringSimple" else {}
    config = XLMConfig(**{**options, **extra})
    with torch.no_grad():  # a sinusoidal model cannot be built otherwise
        model = getattr(transformers, name)(config)
    entry: dict = {
        **({"options": extra} if extra else {}),
        "pt_state_dict": {k: list(v.shape) for k, v in model.state_dict().items()},
        "pt_parameters": sum(p.numel() for p in model.parameters()),
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        model.save_pretrained(source)
        with safe_open(source / "model.safetensors", "pt") as file:
            entry["safetensors_missing"] = sorted(set(entry["pt_state_dict"]) - set(file.keys()))
        cls = getattr(transformers, f"TF{name}", None)
        entry["h5"] = None
        if cls is None:
            entry["h5_error"] = "no such class"
            return entry
        try:
            # Multiple choice looks for an option that XLMConfig does not have.
            other = cls.from_pretrained(source, from_pt=True, config=_with_range(config))
        except (NotImplementedError, UnboundLocalError) as error:
            entry["h5_error"] = type(error).__name__
            return entry
        other.save_pretrained(target)
        entry["h5"] = h5_listing(target / "tf_model.h5")
    return entry


def _with_range(config: XLMConfig) -> XLMConfig:
    return XLMConfig(**{**config.to_dict(), "initializer_range": 0.02})


def _fields(name: str) -> list[str]:
    cls = getattr(modeling_outputs, name, None) or getattr(modeling_xlm, name)
    return [field.name for field in dataclasses.fields(cls)]


def manifest() -> dict:
    signatures = {}
    for name in _ALL:
        signatures[name] = signature(getattr(transformers, name).forward)
        tf = getattr(transformers, f"TF{name}", None)
        if tf is not None:
            signatures[tf.__name__] = signature(tf.call)
    signatures["XLMConfig.__init__"] = signature(XLMConfig.__init__)
    default = XLMConfig()
    return {
        "default_config": {
            "to_dict": default.to_dict(),
            "to_diff_dict": default.to_diff_dict(),
            "attribute_map": dict(XLMConfig.attribute_map),
            "keys_to_ignore_at_inference": list(
                getattr(XLMConfig, "keys_to_ignore_at_inference", [])
            ),
        },
        "generation_config": {
            "from_model": GenerationConfig.from_model_config(default).to_diff_dict()
        },
        "signatures": signatures,
        "outputs": {name: {"class": out, "fields": _fields(out)} for name, out in _OUTPUTS.items()},
        "variants": {
            name: {
                "options": options,
                "config": XLMConfig(**options).to_diff_dict(),
                "classes": {cls: _listing(cls, options) for cls in classes},
            }
            for name, (options, classes) in VARIANTS.items()
        },
    }
