"""XGLM's tokenizer on the ``tokenizers`` library."""

from __future__ import annotations

import os
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from .convert_sentencepiece import with_newline_token
from .fairseq_fast import FairseqTokenizerFast, build_fairseq_backend
from .special_tokens import ADDITIONAL
from .xglm import MADE_UP_WORDS, XGLMSpecialTokens, XGLMTokenizer, with_made_up_words


class XGLMTokenizerFast(XGLMSpecialTokens, FairseqTokenizerFast):
    """XGLM's tokenizer on the ``tokenizers`` library.

    Gives the ids of `XGLMTokenizer`, faster and with offsets.

    Args:
        vocab_file: The sentencepiece model; enough on its own.
        tokenizer_file: A ``tokenizer.json``; read first where both are there.
        bos_token: The beginning of a text; training used ``</s>`` instead.
        eos_token: The end of a text.
        sep_token: Put before each text, and twice between the texts of a pair.
        cls_token: Not used by XGLM itself.
        unk_token: Stands for what the vocabulary lacks.
        pad_token: Stands in padding.
        newline_to_eos: Turn each newline into ``</s>``. XGLM was trained on text like this, one
            ``</s>`` between paragraphs, and continues prompts of several lines best this way.
            Off by default, where newlines become spaces; saved with the tokenizer.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    slow_tokenizer_class = XGLMTokenizer

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
        newline_to_eos: bool = False,
        **kwargs: Any,
    ):
        self.newline_to_eos = newline_to_eos
        kwargs[ADDITIONAL] = with_made_up_words(kwargs.get(ADDITIONAL))
        super().__init__(
            vocab_file,
            tokenizer_file,
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            **kwargs,
        )

    def _build(self, path: str | os.PathLike[str]) -> Tokenizer:
        words = [AddedToken(word, normalized=False, special=True) for word in MADE_UP_WORDS]
        return build_fairseq_backend(path, words)

    def _template(self) -> Any:
        sep = str(self.sep_token)
        return processors.TemplateProcessing(
            single=f"{sep} $A",
            pair=f"{sep} $A {sep} {sep} $B",
            special_tokens=[(sep, self.sep_token_id)],
        )

    def _working_tokenizer(self, inputs: list[Any]) -> Tokenizer:
        tokenizer = super()._working_tokenizer(inputs)
        if not self.newline_to_eos or self.eos_token is None:
            return tokenizer
        exact = tokenizer is not self._tokenizer
        token = self.eos_token
        made = self._variant(
            ("newline", exact), lambda: with_newline_token(self._tokenizer, token, exact)
        )
        return tokenizer if made is None else made

    def _settings_to_save(self) -> dict[str, Any]:
        settings = super()._settings_to_save()
        if self.newline_to_eos:
            settings["newline_to_eos"] = True
        return settings
