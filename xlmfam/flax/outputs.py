"""Makes the outputs pytrees, so that they pass through ``jax.jit``, ``grad`` and ``vmap``."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from jax import tree_util

from xlmfam.common.outputs import (
    OUTPUTS,
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    GenerateOutput,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    TransfoXLLMHeadModelOutput,
    TransfoXLModelOutput,
    TransfoXLSequenceClassifierOutputWithPast,
    XLMForQuestionAnsweringOutput,
)

__all__ = [
    "BaseModelOutput",
    "BaseModelOutputWithPastAndCrossAttentions",
    "BaseModelOutputWithPoolingAndCrossAttentions",
    "CausalLMOutputWithCrossAttentions",
    "GenerateOutput",
    "MaskedLMOutput",
    "ModelOutput",
    "MultipleChoiceModelOutput",
    "QuestionAnsweringModelOutput",
    "Seq2SeqLMOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "TransfoXLLMHeadModelOutput",
    "TransfoXLModelOutput",
    "TransfoXLSequenceClassifierOutputWithPast",
    "XLMForQuestionAnsweringOutput",
]


def _register(output: type[ModelOutput]) -> None:
    def flatten_with_keys(value: ModelOutput):
        children = [(tree_util.GetAttrKey(name), child) for name, child in value.items()]
        return children, tuple(value.keys())

    def unflatten(names: tuple[str, ...], values: Any) -> ModelOutput:
        # JAX puts placeholders here, None among them, and every field must survive.
        result = output()
        for name, value in zip(names, values, strict=True):
            OrderedDict.__setitem__(result, name, value)
        return result

    tree_util.register_pytree_with_keys(output, flatten_with_keys, unflatten)


for _output in OUTPUTS:
    _register(_output)
