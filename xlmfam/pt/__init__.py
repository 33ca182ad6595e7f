"""The models in PyTorch. Names are resolved when first used."""

from __future__ import annotations

import importlib
from typing import Any

from xlmfam.common.errors import MissingPackageError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise MissingPackageError("torch", "xlmfam.pt", "pip install 'xlmfam[pt]'") from error

_EXPORTS = {
    "AutoConfig": "xlmfam.common.configs",
    "AutoModel": "xlmfam.pt.auto",
    "AutoModelForCausalLM": "xlmfam.pt.auto",
    "AutoModelForMaskedLM": "xlmfam.pt.auto",
    "AutoModelForMultipleChoice": "xlmfam.pt.auto",
    "AutoModelForPreTraining": "xlmfam.pt.auto",
    "AutoModelForQuestionAnswering": "xlmfam.pt.auto",
    "AutoModelForSeq2SeqLM": "xlmfam.pt.auto",
    "AutoModelForSequenceClassification": "xlmfam.pt.auto",
    "AutoModelForTokenClassification": "xlmfam.pt.auto",
    "AutoTokenizer": "xlmfam.common.tokenizers",
    "GenerationConfig": "xlmfam.common.generation",
    "KeyValueCache": "xlmfam.pt.cache",
    "PreTrainedModel": "xlmfam.pt.base",
    "TextIteratorStreamer": "xlmfam.pt.streaming",
    "TextStreamer": "xlmfam.pt.streaming",
    "AdaptiveEmbedding": "xlmfam.pt.transfo_xl_modules",
    "TransfoXLConfig": "xlmfam.common.configs",
    "TransfoXLForSequenceClassification": "xlmfam.pt.transfo_xl",
    "TransfoXLLMHeadModel": "xlmfam.pt.transfo_xl",
    "TransfoXLModel": "xlmfam.pt.transfo_xl_transformer",
    "TransfoXLPreTrainedModel": "xlmfam.pt.transfo_xl_transformer",
    "XGLMConfig": "xlmfam.common.configs",
    "XGLMForCausalLM": "xlmfam.pt.xglm",
    "XGLMModel": "xlmfam.pt.xglm",
    "XGLMPreTrainedModel": "xlmfam.pt.xglm",
    "XLMConfig": "xlmfam.common.configs",
    "XLMEncoderDecoder": "xlmfam.pt.xlm_translation",
    "XLMForMultipleChoice": "xlmfam.pt.xlm_heads",
    "XLMForQuestionAnswering": "xlmfam.pt.xlm_heads",
    "XLMForQuestionAnsweringSimple": "xlmfam.pt.xlm_heads",
    "XLMForSequenceClassification": "xlmfam.pt.xlm_heads",
    "XLMForTokenClassification": "xlmfam.pt.xlm_heads",
    "XLMModel": "xlmfam.pt.xlm",
    "XLMPreTrainedModel": "xlmfam.pt.xlm",
    "XLMWithLMHeadModel": "xlmfam.pt.xlm",
    "XmodConfig": "xlmfam.common.configs",
    "XmodForCausalLM": "xlmfam.pt.xmod",
    "XmodForMaskedLM": "xlmfam.pt.xmod",
    "XmodForMultipleChoice": "xlmfam.pt.xmod_heads",
    "XmodForQuestionAnswering": "xlmfam.pt.xmod_heads",
    "XmodForSequenceClassification": "xlmfam.pt.xmod_heads",
    "XmodForTokenClassification": "xlmfam.pt.xmod_heads",
    "XmodModel": "xlmfam.pt.xmod",
    "XmodPreTrainedModel": "xlmfam.pt.xmod",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'xlmfam.pt' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
