"""What tokenizers share whose sentencepiece vocabulary got its ids from fairseq."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece

from xlmfam.common.errors import CheckpointError, XlmfamError

from .files import prepare_folder, write_atomically
from .sentencepiece_model import SPACE, read_bytes
from .slow import PreTrainedTokenizer

VOCAB_FILES_NAMES = {"vocab_file": "sentencepiece.bpe.model"}

# Ids as fairseq has them: four tokens of its own, then the pieces from the third on, and at the
# end what a family adds.
FAIRSEQ_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
FAIRSEQ_OFFSET = 1


class FairseqTokenizer(PreTrainedTokenizer):
    """A tokenizer on the sentencepiece library, with fairseq's ids.

    Args:
        vocab_file: The sentencepiece model.
        sp_model_kwargs: Options of ``sentencepiece.SentencePieceProcessor``.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    # The tokens whose ids follow those of the pieces.
    tokens_after_pieces: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.vocab_file = str(vocab_file)
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        self._model_bytes = read_bytes(vocab_file)
        self.sp_model = self._load()
        super().__init__(sp_model_kwargs=self.sp_model_kwargs, **kwargs)

    def _load(self) -> Any:
        processor = sentencepiece.SentencePieceProcessor(**self.sp_model_kwargs)
        try:
            processor.LoadFromSerializedProto(self._model_bytes)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.vocab_file} cannot be read as a sentencepiece model: {error}"
            ) from error
        first = len(processor) + FAIRSEQ_OFFSET
        self._fairseq_ids = {token: number for number, token in enumerate(FAIRSEQ_TOKENS)}
        self._fairseq_ids.update(
            {token: first + number for number, token in enumerate(self.tokens_after_pieces)}
        )
        self._fairseq_tokens = {number: token for token, number in self._fairseq_ids.items()}
        return processor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sp_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.sp_model = self._load()

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.sp_model) + FAIRSEQ_OFFSET + len(self.tokens_after_pieces)

    def get_vocab(self) -> dict[str, int]:
        """Return the whole vocabulary, added tokens included, as token to id."""
        vocab = {self._convert_id_to_token(number): number for number in range(self.vocab_size)}
        vocab.update(self.added_tokens_encoder)
        return vocab

    def _known_id(self, token: str) -> int | None:
        number = self._convert_token_to_id(token)
        return None if number == self._fairseq_ids["<unk>"] and token != "<unk>" else number

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:  # noqa: ARG002
        return self.sp_model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        if token in self._fairseq_ids:
            return self._fairseq_ids[token]
        number = self.sp_model.PieceToId(token)
        # Zero is what sentencepiece says of a piece that it does not know.
        return number + FAIRSEQ_OFFSET if number else self._fairseq_ids["<unk>"]

    def _convert_id_to_token(self, index: int) -> str:
        if index in self._fairseq_tokens:
            return self._fairseq_tokens[index]
        if not 0 <= index < self.vocab_size:
            raise XlmfamError(f"the id {index} is not in the vocabulary, which has {len(self)}")
        return self.sp_model.IdToPiece(index - FAIRSEQ_OFFSET)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens: pieces joined, with spaces where they mark them."""
        return "".join(tokens).replace(SPACE, " ").strip()

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the sentencepiece model.

        Args:
            save_directory: The folder; it is created where it is missing.
            filename_prefix: Put before the file name, with a hyphen.

        Returns:
            The path written.
        """
        return (save_model(self._model_bytes, save_directory, filename_prefix),)

    def _settings_to_save(self) -> dict[str, Any]:
        return {**super()._settings_to_save(), "sp_model_kwargs": self.sp_model_kwargs}


def save_model(
    content: bytes, save_directory: str | os.PathLike[str], filename_prefix: str | None
) -> str:
    """Write a sentencepiece model into a folder, and return its path."""
    prefix = f"{filename_prefix}-" if filename_prefix else ""
    path: Path = prepare_folder(save_directory) / f"{prefix}{VOCAB_FILES_NAMES['vocab_file']}"
    if not (path.is_file() and path.read_bytes() == content):
        write_atomically(path, content)
    return str(path)
