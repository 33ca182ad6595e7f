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
    "AutoConfig": "xlmfam.common.configs",
    "AutoModel": "xlmfam.flax.auto",
    "AutoModelForCausalLM": "xlmfam.flax.auto",
    "AutoTokenizer": "xlmfam.common.tokenizers",
    "GenerationConfig": "xlmfam.common.generation",
    "KeyValueCache": "xlmfam.flax.cache",
    "PreTrainedModel": "xlmfam.flax.base",
    "XGLMConfig": "xlmfam.common.configs",
    "XGLMForCausalLM": "xlmfam.flax.xglm",
    "XGLMModel": "xlmfam.flax.xglm",
    "XGLMPreTrainedModel": "xlmfam.flax.xglm",
}
# transformers' names of the same classes.
_ALIASES = {
    "FlaxAutoModel": "AutoModel",
    "FlaxAutoModelForCausalLM": "AutoModelForCausalLM",
    "FlaxPreTrainedModel": "PreTrainedModel",
    "FlaxXGLMForCausalLM": "XGLMForCausalLM",
    "FlaxXGLMModel": "XGLMModel",
    "FlaxXGLMPreTrainedModel": "XGLMPreTrainedModel",
}

__all__ = sorted([*_EXPORTS, *_ALIASES])


def __getattr__(name: str) -> Any:
    target = _ALIASES.get(name, name)
    if target not in _EXPORTS:
        raise AttributeError(f"module 'xlmfam.flax' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[target]), target)


def __dir__() -> list[str]:
    return __all__
