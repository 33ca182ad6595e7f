"""The models in TensorFlow, as Keras 3 models. Names are resolved when first used."""

from __future__ import annotations

import importlib
import os
from typing import Any

from xlmfam.common.errors import MissingPackageError, XlmfamError

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # read when keras is imported

try:
    import tensorflow  # noqa: F401
except ImportError as error:
    raise MissingPackageError("tensorflow", "xlmfam.tf", "pip install 'xlmfam[tf]'") from error
try:
    import keras
except ImportError as error:
    raise MissingPackageError("keras", "xlmfam.tf", "pip install 'xlmfam[tf]'") from error

if keras.backend.backend() != "tensorflow":
    raise XlmfamError(
        f"xlmfam.tf needs Keras on the TensorFlow backend; it runs on "
        f"'{keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow before keras is imported."
    )

_XGLM = dict.fromkeys(
    (
        "TFXGLMForCausalLM",
        "TFXGLMModel",
        "TFXGLMPreTrainedModel",
        "XGLMForCausalLM",
        "XGLMModel",
        "XGLMPreTrainedModel",
    ),
    "xlmfam.tf.xglm",
)
_EXPORTS = {
    "AutoConfig": "xlmfam.common.configs",
    "AutoModel": "xlmfam.tf.auto",
    "AutoModelForCausalLM": "xlmfam.tf.auto",
    "AutoTokenizer": "xlmfam.common.tokenizers",
    "GenerationConfig": "xlmfam.common.generation",
    "KeyValueCache": "xlmfam.tf.cache",
    "PreTrainedModel": "xlmfam.tf.base",
    "TFAutoModel": "xlmfam.tf.auto",
    "TFAutoModelForCausalLM": "xlmfam.tf.auto",
    "TFPreTrainedModel": "xlmfam.tf.base",
    "XGLMConfig": "xlmfam.common.configs",
    **_XGLM,
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'xlmfam.tf' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
