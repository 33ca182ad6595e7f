"""The models in JAX and Flax linen. Names are resolved when first used."""

from __future__ import annotations

import importlib
from typing import Any

from xlmfam.common.errors import MissingPackageError

for _package in ("jax", "flax"):
    try:
        importlib.import_module(_package)
    except ImportError as error:
        install = "pip install 'xlmfam[flax]'"
        raise MissingPackageError(_package, "xlmfam.flax", install) from error

_EXPORTS = {
    "AdaptiveEmbedding": "xlmfam.flax.transfo_xl_clusters",
    "AutoConfig": "xlmfam.common.configs",
    "AutoModel": "xlmfam.flax.auto",
    "AutoModelForCausalLM": "xlmfam.flax.auto",
    "AutoModelForMaskedLM": "xlmfam.flax.auto",
    "AutoModelForMultipleChoice": "xlmfam.flax.auto",
    "AutoModelForPreTraining": "xlmfam.flax.auto",
    "AutoModelForQuestionAnswering": "xlmfam.flax.auto",
    "AutoModelForSeq2SeqLM": "xlmfam.flax.auto",
    "AutoModelForSequenceClassification": "xlmfam.flax.auto",
    "AutoModelForTokenClassification": "xlmfam.flax.auto",
    "AutoTokenizer": "xlmfam.common.tokenizers",
    "GenerationConfig": "xlmfam.common.generation",
    "KeyValueCache": "xlmfam.flax.cache",
    "PreTrainedModel": "xlmfam.flax.base",
    "TransfoXLConfig": "xlmfam.common.configs",
    "TransfoXLForSequenceClassification": "xlmfam.flax.transfo_xl",
    "TransfoXLLMHeadModel": "xlmfam.flax.transfo_xl",
    "TransfoXLModel": "xlmfam.flax.transfo_xl_transformer",
    "TransfoXLPreTrainedModel": "xlmfam.flax.transfo_xl_transformer",
    "XGLMConfig": "xlmfam.common.configs",
    "XGLMForCausalLM": "xlmfam.flax.xglm",
    "XGLMModel": "xlmfam.flax.xglm",
    "XGLMPreTrainedModel": "xlmfam.flax.xglm",
    "XLMConfig": "xlmfam.common.configs",
    "XLMEncoderDecoder": "xlmfam.flax.xlm_translation",
    "XLMForMultipleChoice": "xlmfam.flax.xlm_heads",
    "XLMForQuestionAnswering": "xlmfam.flax.xlm_heads",
    "XLMForQuestionAnsweringSimple": "xlmfam.flax.xlm_heads",
    "XLMForSequenceClassification": "xlmfam.flax.xlm_heads",
    "XLMForTokenClassification": "xlmfam.flax.xlm_heads",
    "XLMModel": "xlmfam.flax.xlm",
    "XLMPreTrainedModel": "xlmfam.flax.xlm",
    "XLMWithLMHeadModel": "xlmfam.flax.xlm",
    "XmodConfig": "xlmfam.common.configs",
    "XmodForCausalLM": "xlmfam.flax.xmod",
    "XmodForMaskedLM": "xlmfam.flax.xmod",
    "XmodForMultipleChoice": "xlmfam.flax.xmod_heads",
    "XmodForQuestionAnswering": "xlmfam.flax.xmod_heads",
    "XmodForSequenceClassification": "xlmfam.flax.xmod_heads",
    "XmodForTokenClassification": "xlmfam.flax.xmod_heads",
    "XmodModel": "xlmfam.flax.xmod",
    "XmodPreTrainedModel": "xlmfam.flax.xmod",
}
# transformers' names of the same classes.
_ALIASES = {
    f"Flax{name}": name
    for name, module in _EXPORTS.items()
    if module.startswith("xlmfam.flax.") and name != "KeyValueCache"
}

__all__ = sorted([*_EXPORTS, *_ALIASES])


def __getattr__(name: str) -> Any:
    target = _ALIASES.get(name, name)
    if target not in _EXPORTS:
        raise AttributeError(f"module 'xlmfam.flax' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[target]), target)


def __dir__() -> list[str]:
    return __all__
