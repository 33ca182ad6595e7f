"""XGLM's tokenizer on the ``tokenizers`` library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer, processors

from xlmfam.common.errors import CheckpointError, XlmfamError

from .convert_sentencepiece import repair_trailing_space, unigram_or_bpe, with_newline_token
from .fast import PreTrainedTokenizerFast, read_tokenizer_file
from .files import TOKENIZER_FILE
from .sentencepiece_model import SentencePieceModel, read_bytes
from .special_tokens import ADDITIONAL
from .xglm import (
    FAIRSEQ_TOKENS,
    MADE_UP_WORDS,
    VOCAB_FILES_NAMES,
    XGLMSpecialTokens,
    XGLMTokenizer,
    save_model,
    with_made_up_words,
)

# The first pieces of the model are its own special tokens; fairseq's stand in their place.
_FIRST_PIECE = 3


def build_backend(path: str | os.PathLike[str]) -> Tokenizer:
    """Build the tokenizer of the ``tokenizers`` library from XGLM's sentencepiece model.

    Args:
        path: The ``.model`` file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    model = SentencePieceModel.read(path)
    vocabulary = [(token, 0.0) for token in FAIRSEQ_TOKENS]
    vocabulary += [(piece.text, piece.score) for piece in model.pieces[_FIRST_PIECE:]]
    vocabulary += [(word, 0.0) for word in MADE_UP_WORDS]
    tokenizer = unigram_or_bpe(model, vocabulary, unk_id=FAIRSEQ_TOKENS.index("<unk>"))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in (*FAIRSEQ_TOKENS, *MADE_UP_WORDS)]
    )
    return tokenizer


class XGLMTokenizerFast(XGLMSpecialTokens, PreTrainedTokenizerFast):
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

    vocab_files_names: ClassVar[dict[str, str]] = {
        **VOCAB_FILES_NAMES,
        "tokenizer_file": TOKENIZER_FILE,
    }
    optional_vocab_files = ("vocab_file", "tokenizer_file")
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
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
        given: Tokenizer | None = kwargs.pop("tokenizer_object", None)
        if given is not None:
            backend = Tokenizer.from_str(given.to_str())
        elif tokenizer_file is not None:
            backend = read_tokenizer_file(tokenizer_file)
        elif vocab_file is not None:
            backend = build_backend(vocab_file)
        else:
            raise XlmfamError("vocab_file or tokenizer_file is needed; both are None")
        repair_trailing_space(backend)
        self._tokenizer = backend
        self.vocab_file = None if vocab_file is None else str(vocab_file)
        self.newline_to_eos = newline_to_eos
        kwargs[ADDITIONAL] = with_made_up_words(kwargs.get(ADDITIONAL))
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            **kwargs,
        )
        if self._tokenizer.post_processor is None:
            self._tokenizer.post_processor = self._template()

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

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether the sentencepiece model is there to be saved."""
        return self.vocab_file is not None and Path(self.vocab_file).is_file()

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the sentencepiece model.

        Args:
            save_directory: The folder; it is created where it is missing.
            filename_prefix: Put before the file name, with a hyphen.

        Returns:
            The path written.

        Raises:
            CheckpointError: the tokenizer was loaded without a sentencepiece model.
        """
        if not self.can_save_slow_tokenizer:
            raise CheckpointError(
                "there is no sentencepiece model to save: this tokenizer was loaded from "
                "tokenizer.json alone; save_pretrained(..., legacy_format=False) needs none"
            )
        assert self.vocab_file is not None
        return (save_model(read_bytes(self.vocab_file), save_directory, filename_prefix),)

    def _settings_to_save(self) -> dict[str, Any]:
        settings = super()._settings_to_save()
        if self.newline_to_eos:
            settings["newline_to_eos"] = True
        return settings
