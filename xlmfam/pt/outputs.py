"""Makes the outputs pytrees, so that they pass through ``torch.export``, DDP and ``vmap``."""

from __future__ import annotations

from torch.utils import _pytree as pytree

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
        return list(value.values()), list(value.keys())

    def unflatten(values, names):
        return output(zip(names, values, strict=True))

    pytree.register_pytree_node(
        output,
        flatten,
        unflatten,
        serialized_type_name=f"{output.__module__}.{output.__name__}",
        flatten_with_keys_fn=lambda value: (
            [(pytree.MappingKey(name), child) for name, child in value.items()],
            list(value.keys()),
        ),
    )


for _output in OUTPUTS:
    _register(_output)
