"""xlmfam: XLM, X-MOD, XGLM and Transformer-XL in PyTorch, TensorFlow/Keras 3 and JAX/Flax.

Configs and tokenizers stand here; models are imported from ``xlmfam.pt``, ``xlmfam.tf`` or
``xlmfam.flax``. Importing ``xlmfam`` imports no framework: names are resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AutoConfig": "xlmfam.common.configs",
    "AutoTokenizer": "xlmfam.common.tokenizers",
    "LMMultiFileIterator": "xlmfam.common.corpora",
    "LMOrderedIterator": "xlmfam.common.corpora",
    "LMShuffledIterator": "xlmfam.common.corpora",
    "GenerationConfig": "xlmfam.common.generation",
    "PretrainedConfig": "xlmfam.common.configs",
    "TransfoXLConfig": "xlmfam.common.configs",
    "TransfoXLCorpus": "xlmfam.common.corpora",
    "TransfoXLTokenizer": "xlmfam.common.tokenizers",
    "XGLMConfig": "xlmfam.common.configs",
    "XGLMTokenizer": "xlmfam.common.tokenizers",
    "XGLMTokenizerFast": "xlmfam.common.tokenizers",
    "XLMConfig": "xlmfam.common.configs",
    "XLMRobertaTokenizer": "xlmfam.common.tokenizers",
    "XLMRobertaTokenizerFast": "xlmfam.common.tokenizers",
    "XmodConfig": "xlmfam.common.configs",
    "get_lm_corpus": "xlmfam.common.corpora",
    "XLMTokenizer": "xlmfam.common.tokenizers",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'xlmfam' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
