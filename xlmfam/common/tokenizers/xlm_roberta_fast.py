"""XLM-R's tokenizer, which X-MOD uses, on the ``tokenizers`` library."""

from __future__ import annotations

import os
from typing import Any

from tokenizers import Tokenizer, processors

from .convert_sentencepiece import join_spaces_to_space, with_exact_normalizer, with_raw_tokens
from .exact_normalizer import becomes_another
from .fairseq import FAIRSEQ_TOKENS
from .fairseq_fast import FairseqTokenizerFast, build_fairseq_backend
from .xlm_roberta import MASK, XLMRobertaSpecialTokens, XLMRobertaTokenizer, mask_with_space

# The special tokens of the vocabulary: text is none of them unless it came as such.
_GUARDED = (*FAIRSEQ_TOKENS, MASK)


class XLMRobertaTokenizerFast(XLMRobertaSpecialTokens, FairseqTokenizerFast):
    """XLM-R's tokenizer, which X-MOD uses, on the ``tokenizers`` library.

    Gives the ids of `XLMRobertaTokenizer`, faster and with offsets.

    Args:
        vocab_file: The sentencepiece model; enough on its own.
        tokenizer_file: A ``tokenizer.json``; read first where both are there.
        bos_token: The beginning of a text; inputs begin with ``cls_token``, the same by default.
        eos_token: The end of a text; inputs end with ``sep_token``, the same by default.
        sep_token: Put after each text, and once more between the texts of a pair.
        cls_token: Put before the first text; the whole input is classified by it.
        unk_token: Stands for what the vocabulary lacks.
        pad_token: Stands in padding.
        mask_token: Stands for what the model has to find. As a string it takes the space
            before it; an ``AddedToken`` says itself what it takes.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    slow_tokenizer_class = XLMRobertaTokenizer

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        sep_token: Any = "</s>",
        cls_token: Any = "<s>",
        unk_token: Any = "<unk>",
        pad_token: Any = "<pad>",
        mask_token: Any = MASK,
        **kwargs: Any,
    ):
        super().__init__(
            vocab_file,
            tokenizer_file,
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            mask_token=mask_with_space(mask_token),
            **kwargs,
        )

    def _build(self, path: str | os.PathLike[str]) -> Tokenizer:
        return build_fairseq_backend(path, [mask_with_space(MASK)])

    def _repair(self, backend: Tokenizer) -> None:
        super()._repair(backend)
        join_spaces_to_space(backend)

    def _template(self) -> Any:
        cls, sep = str(self.cls_token), str(self.sep_token)
        return processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} {sep} $B {sep}",
            special_tokens=[(cls, self.cls_token_id), (sep, self.sep_token_id)],
        )

    def _needs_exact(self, text: str) -> bool:
        return super()._needs_exact(text) or becomes_another(
            text, _GUARDED, self._tokenizer.normalizer
        )

    def _make_exact(self) -> Tokenizer | None:
        # The mask is looked for in normalised text, which "<" and letters that only look like
        # "mask>" become as well: here it is looked for in the text as it came.
        added = self.added_tokens_decoder.values()
        raw = [t.content for t in added if not t.normalized or t.content in _GUARDED]
        return with_exact_normalizer(with_raw_tokens(self._tokenizer, raw), raw)
