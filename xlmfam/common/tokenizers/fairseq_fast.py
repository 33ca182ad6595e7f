"""The fast side of `fairseq`: its vocabularies on the ``tokenizers`` library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer

from xlmfam.common.errors import CheckpointError, XlmfamError

from .convert_sentencepiece import repair_trailing_space, unigram_or_bpe
from .fairseq import FAIRSEQ_TOKENS, VOCAB_FILES_NAMES, save_model
from .fast import PreTrainedTokenizerFast, read_tokenizer_file
from .files import TOKENIZER_FILE
from .sentencepiece_model import SentencePieceModel, read_bytes

# The first pieces of the model are its own special tokens; fairseq's stand in their place.
_FIRST_PIECE = 3


def build_fairseq_backend(path: str | os.PathLike[str], after: list[AddedToken]) -> Tokenizer:
    """Build the tokenizer of the ``tokenizers`` library from a sentencepiece model.

    Args:
        path: The ``.model`` file.
        after: The special tokens whose ids follow those of the pieces.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    model = SentencePieceModel.read(path)
    vocabulary = [(token, 0.0) for token in FAIRSEQ_TOKENS]
    vocabulary += [(piece.text, piece.score) for piece in model.pieces[_FIRST_PIECE:]]
    vocabulary += [(token.content, 0.0) for token in after]
    tokenizer = unigram_or_bpe(model, vocabulary, unk_id=FAIRSEQ_TOKENS.index("<unk>"))
    first = [AddedToken(token, normalized=False, special=True) for token in FAIRSEQ_TOKENS]
    tokenizer.add_special_tokens([*first, *after])
    return tokenizer


class FairseqTokenizerFast(PreTrainedTokenizerFast):
    """A tokenizer on the ``tokenizers`` library, with fairseq's ids.

    Args:
        vocab_file: The sentencepiece model; enough on its own.
        tokenizer_file: A ``tokenizer.json``; read first where both are there.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        **VOCAB_FILES_NAMES,
        "tokenizer_file": TOKENIZER_FILE,
    }
    optional_vocab_files = ("vocab_file", "tokenizer_file")
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ):
        given: Tokenizer | None = kwargs.pop("tokenizer_object", None)
        if given is not None:
            backend = Tokenizer.from_str(given.to_str())
        elif tokenizer_file is not None:
            backend = read_tokenizer_file(tokenizer_file)
        elif vocab_file is not None:
            backend = self._build(vocab_file)
        else:
            raise XlmfamError("vocab_file or tokenizer_file is needed; both are None")
        self._repair(backend)
        self._tokenizer = backend
        self.vocab_file = None if vocab_file is None else str(vocab_file)
        super().__init__(**kwargs)
        if self._tokenizer.post_processor is None:
            self._tokenizer.post_processor = self._template()

    def _build(self, path: str | os.PathLike[str]) -> Tokenizer:
        """Return the tokenizer of a sentencepiece model."""
        raise NotImplementedError

    def _repair(self, backend: Tokenizer) -> None:
        """Make a tokenizer that came from somewhere split as sentencepiece does."""
        repair_trailing_space(backend)

    def _template(self) -> Any:
        """Return the post-processor that puts the special tokens around texts."""
        raise NotImplementedError

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
