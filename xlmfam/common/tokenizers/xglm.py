"""XGLM's tokenizer on the sentencepiece library."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

from xlmfam.common.errors import XlmfamError

from .fairseq import FairseqTokenizer
from .special_tokens import ADDITIONAL

# They make the vocabulary's size a multiple of eight.
MADE_UP_WORDS = tuple(f"<madeupword{number}>" for number in range(7))

NEWLINE = re.compile(r"\r\n|\r|\n")


def with_made_up_words(tokens: Any) -> list[Any]:
    """Return additional special tokens with the made-up words that they lack."""
    tokens = list(tokens or [])
    known = {str(token) for token in tokens}
    return tokens + [word for word in MADE_UP_WORDS if word not in known]


class XGLMSpecialTokens:
    """How XGLM puts texts together: ``</s> A``, and ``</s> A </s></s> B`` for pairs."""

    sep_token_id: Any
    all_special_ids: Any

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put ``</s>`` before a text, and twice between the texts of a pair.

        Args:
            token_ids_0: Ids of the first text.
            token_ids_1: Ids of the second text.
        """
        sep = [self.sep_token_id]
        if token_ids_1 is None:
            return sep + token_ids_0
        return sep + token_ids_0 + sep + sep + token_ids_1

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return zeros: XGLM has no token types.

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
            if token_ids_1 is not None:
                raise XlmfamError(
                    "token_ids_1 is given with already_has_special_tokens=True: pass the whole "
                    "input, both sequences in one, as token_ids_0"
                )
            special = set(self.all_special_ids)
            return [int(token in special) for token in token_ids_0]
        mask = [1] + [0] * len(token_ids_0)
        return mask if token_ids_1 is None else mask + [1, 1] + [0] * len(token_ids_1)


class XGLMTokenizer(XGLMSpecialTokens, FairseqTokenizer):
    """XGLM's tokenizer on the sentencepiece library.

    Args:
        vocab_file: The sentencepiece model.
        bos_token: The beginning of a text; training used ``</s>`` instead.
        eos_token: The end of a text.
        sep_token: Put before each text, and twice between the texts of a pair.
        cls_token: Not used by XGLM itself.
        unk_token: Stands for what the vocabulary lacks.
        pad_token: Stands in padding.
        sp_model_kwargs: Options of ``sentencepiece.SentencePieceProcessor``: with
            ``enable_sampling=True``, ``nbest_size`` and ``alpha`` a text is split at random
            (subword regularisation), anew in each call.
        newline_to_eos: Turn each newline into ``</s>``. XGLM was trained on text like this, one
            ``</s>`` between paragraphs, and continues prompts of several lines best this way.
            Off by default, where newlines become spaces; saved with the tokenizer.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    tokens_after_pieces: ClassVar[tuple[str, ...]] = MADE_UP_WORDS

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        sep_token: Any = "</s>",
        cls_token: Any = "<s>",
        unk_token: Any = "<unk>",
        pad_token: Any = "<pad>",
        sp_model_kwargs: dict[str, Any] | None = None,
        newline_to_eos: bool = False,
        **kwargs: Any,
    ):
        self.newline_to_eos = newline_to_eos
        kwargs[ADDITIONAL] = with_made_up_words(kwargs.get(ADDITIONAL))
        super().__init__(
            vocab_file,
            sp_model_kwargs,
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            **kwargs,
        )

    def prepare_for_tokenization(
        self,
        text: str,
        is_split_into_words: bool = False,  # noqa: ARG002
        **kwargs: Any,
    ) -> tuple[str, dict[str, Any]]:
        """Turn newlines into ``</s>`` where ``newline_to_eos`` is on.

        Args:
            text: The text.
            is_split_into_words: It is one word of a list of them.
            **kwargs: Passed through.
        """
        if self.newline_to_eos and self.eos_token is not None:
            text = NEWLINE.sub(lambda _: self.eos_token, text)
        return text, kwargs

    def _settings_to_save(self) -> dict[str, Any]:
        settings = super()._settings_to_save()
        if self.newline_to_eos:
            settings["newline_to_eos"] = True
        return settings
