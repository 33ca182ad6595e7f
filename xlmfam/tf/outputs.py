"""Makes the outputs structures of Keras's trees (``tf.nest`` knows them as mappings already)."""

from __future__ import annotations

import optree

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
    def flatten(value):
        return list(value.values()), tuple(value.keys()), tuple(value.keys())

    def unflatten(names, values):
        return output(zip(names, values, strict=True))

    optree.register_pytree_node(output, flatten, unflatten, namespace="keras")


for _output in OUTPUTS:
    _register(_output)
