"""XLM-R's tokenizer, which X-MOD uses, on the sentencepiece library."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from tokenizers import AddedToken

from .base import PreTrainedTokenizerBase
from .fairseq import FairseqTokenizer

MASK = "<mask>"


def mask_with_space(token: Any) -> Any:
    """Return a mask token that takes the space before it, unless it says itself what it takes."""
    if not isinstance(token, str):
        return token
    return AddedToken(token, lstrip=True, normalized=True, special=True)


class XLMRobertaSpecialTokens(PreTrainedTokenizerBase):
    """How XLM-R puts texts together: ``<s> A </s>``, and ``<s> A </s></s> B </s>`` for pairs."""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put ``<s>`` before the first text, ``</s>`` after each, and one more between them.

        Args:
            token_ids_0: Ids of the first text.
            token_ids_1: Ids of the second text.
        """
        cls, sep = [self.cls_token_id], [self.sep_token_id]
        first = cls + token_ids_0 + sep
        return first if token_ids_1 is None else first + sep + token_ids_1 + sep

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return zeros: XLM-R has one token type.

        Args:
            token_ids_0: Ids of the first text.
            token_ids_1: Ids of the second text.
        """
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for special tokens and 0 for others.

        Args:
            token_ids_0: Ids of the first text.
            token_ids_1: Ids of the second text.
            already_has_special_tokens: ``token_ids_0`` is a whole model input already.
        """
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
        mask = [1] + [0] * len(token_ids_0) + [1]
        return mask if token_ids_1 is None else mask + [1] + [0] * len(token_ids_1) + [1]


class XLMRobertaTokenizer(XLMRobertaSpecialTokens, FairseqTokenizer):
    """XLM-R's tokenizer, which X-MOD uses, on the sentencepiece library.

    Args:
        vocab_file: The sentencepiece model.
        bos_token: The beginning of a text; inputs begin with ``cls_token``, the same by default.
        eos_token: The end of a text; inputs end with ``sep_token``, the same by default.
        sep_token: Put after each text, and once more between the texts of a pair.
        cls_token: Put before the first text; the whole input is classified by it.
        unk_token: Stands for what the vocabulary lacks.
        pad_token: Stands in padding.
        mask_token: Stands for what the model has to find. As a string it takes the space
            before it; an ``AddedToken`` says itself what it takes.
        sp_model_kwargs: Options of ``sentencepiece.SentencePieceProcessor``: with
            ``enable_sampling=True``, ``nbest_size`` and ``alpha`` a text is split at random
            (subword regularisation), anew in each call.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    tokens_after_pieces: ClassVar[tuple[str, ...]] = (MASK,)

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        sep_token: Any = "</s>",
        cls_token: Any = "<s>",
        unk_token: Any = "<unk>",
        pad_token: Any = "<pad>",
        mask_token: Any = MASK,
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            vocab_file,
            sp_model_kwargs,
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            mask_token=mask_with_space(mask_token),
            **kwargs,
        )
