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

# Every class has transformers' prefixed name too.
_MODELS = {
    "AdaptiveEmbedding": "xlmfam.tf.transfo_xl",
    "TransfoXLForSequenceClassification": "xlmfam.tf.transfo_xl",
    "TransfoXLLMHeadModel": "xlmfam.tf.transfo_xl",
    "TransfoXLModel": "xlmfam.tf.transfo_xl",
    "TransfoXLPreTrainedModel": "xlmfam.tf.transfo_xl",
    "XGLMForCausalLM": "xlmfam.tf.xglm",
    "XGLMModel": "xlmfam.tf.xglm",
    "XGLMPreTrainedModel": "xlmfam.tf.xglm",
    "XLMEncoderDecoder": "xlmfam.tf.xlm_translation",
    "XLMForMultipleChoice": "xlmfam.tf.xlm_heads",
    "XLMForQuestionAnswering": "xlmfam.tf.xlm_heads",
    "XLMForQuestionAnsweringSimple": "xlmfam.tf.xlm_heads",
    "XLMForSequenceClassification": "xlmfam.tf.xlm_heads",
    "XLMForTokenClassification": "xlmfam.tf.xlm_heads",
    "XLMModel": "xlmfam.tf.xlm",
    "XLMPreTrainedModel": "xlmfam.tf.xlm",
    "XLMWithLMHeadModel": "xlmfam.tf.xlm",
    "XmodForCausalLM": "xlmfam.tf.xmod",
    "XmodForMaskedLM": "xlmfam.tf.xmod",
    "XmodForMultipleChoice": "xlmfam.tf.xmod_heads",
    "XmodForQuestionAnswering": "xlmfam.tf.xmod_heads",
    "XmodForSequenceClassification": "xlmfam.tf.xmod_heads",
    "XmodForTokenClassification": "xlmfam.tf.xmod_heads",
    "XmodModel": "xlmfam.tf.xmod",
    "XmodPreTrainedModel": "xlmfam.tf.xmod",
}
_EXPORTS = {
    "AutoConfig": "xlmfam.common.configs",
    "AutoModel": "xlmfam.tf.auto",
    "AutoModelForCausalLM": "xlmfam.tf.auto",
    "AutoModelForMaskedLM": "xlmfam.tf.auto",
    "AutoModelForMultipleChoice": "xlmfam.tf.auto",
    "AutoModelForPreTraining": "xlmfam.tf.auto",
    "AutoModelForQuestionAnswering": "xlmfam.tf.auto",
    "AutoModelForSeq2SeqLM": "xlmfam.tf.auto",
    "AutoModelForSequenceClassification": "xlmfam.tf.auto",
    "AutoModelForTokenClassification": "xlmfam.tf.auto",
    "AutoTokenizer": "xlmfam.common.tokenizers",
    "GenerationConfig": "xlmfam.common.generation",
    "KeyValueCache": "xlmfam.tf.cache",
    "PreTrainedModel": "xlmfam.tf.base",
    "TFAutoModel": "xlmfam.tf.auto",
    "TFAutoModelForCausalLM": "xlmfam.tf.auto",
    "TFAutoModelForMaskedLM": "xlmfam.tf.auto",
    "TFAutoModelForMultipleChoice": "xlmfam.tf.auto",
    "TFAutoModelForPreTraining": "xlmfam.tf.auto",
    "TFAutoModelForQuestionAnswering": "xlmfam.tf.auto",
    "TFAutoModelForSeq2SeqLM": "xlmfam.tf.auto",
    "TFAutoModelForSequenceClassification": "xlmfam.tf.auto",
    "TFAutoModelForTokenClassification": "xlmfam.tf.auto",
    "TFPreTrainedModel": "xlmfam.tf.base",
    "TransfoXLConfig": "xlmfam.common.configs",
    "XGLMConfig": "xlmfam.common.configs",
    "XLMConfig": "xlmfam.common.configs",
    "XmodConfig": "xlmfam.common.configs",
    **_MODELS,
    **{f"TF{name}": module for name, module in _MODELS.items()},
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'xlmfam.tf' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
