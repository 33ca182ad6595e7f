"""Tokenizers of the four families; every name here is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken

    from .auto import AutoTokenizer
    from .base import PreTrainedTokenizerBase
    from .encoding import BatchEncoding, CharSpan, TokenSpan
    from .fast import PreTrainedTokenizerFast
    from .padding import PaddingStrategy
    from .slow import PreTrainedTokenizer
    from .tensors import TensorType
    from .transfo_xl import TransfoXLTokenizer
    from .truncation import TruncationStrategy
    from .xglm import XGLMTokenizer
    from .xglm_fast import XGLMTokenizerFast
    from .xlm import XLMTokenizer
    from .xlm_roberta import XLMRobertaTokenizer
    from .xlm_roberta_fast import XLMRobertaTokenizerFast

_WHERE = {
    "AddedToken": "tokenizers",
    "AutoTokenizer": ".auto",
    "BatchEncoding": ".encoding",
    "CharSpan": ".encoding",
    "PaddingStrategy": ".padding",
    "PreTrainedTokenizer": ".slow",
    "PreTrainedTokenizerBase": ".base",
    "PreTrainedTokenizerFast": ".fast",
    "TensorType": ".tensors",
    "TokenSpan": ".encoding",
    "TransfoXLTokenizer": ".transfo_xl",
    "TruncationStrategy": ".truncation",
    "XGLMTokenizer": ".xglm",
    "XGLMTokenizerFast": ".xglm_fast",
    "XLMRobertaTokenizer": ".xlm_roberta",
    "XLMRobertaTokenizerFast": ".xlm_roberta_fast",
    "XLMTokenizer": ".xlm",
}

__all__ = [
    "AddedToken",
    "AutoTokenizer",
    "BatchEncoding",
    "CharSpan",
    "PaddingStrategy",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerBase",
    "PreTrainedTokenizerFast",
    "TensorType",
    "TokenSpan",
    "TransfoXLTokenizer",
    "TruncationStrategy",
    "XGLMTokenizer",
    "XGLMTokenizerFast",
    "XLMRobertaTokenizer",
    "XLMRobertaTokenizerFast",
    "XLMTokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
