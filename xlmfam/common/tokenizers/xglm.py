"""XGLM's tokenizer on the sentencepiece library."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece

from xlmfam.common.errors import CheckpointError, XlmfamError

from .files import prepare_folder, write_atomically
from .sentencepiece_model import SPACE, read_bytes
from .slow import PreTrainedTokenizer
from .special_tokens import ADDITIONAL

VOCAB_FILES_NAMES = {"vocab_file": "sentencepiece.bpe.model"}

# Ids as fairseq has them: four tokens of its own, then the pieces from the third on, and at the
# end words that make the vocabulary's size a multiple of eight.
FAIRSEQ_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
FAIRSEQ_OFFSET = 1
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


class XGLMTokenizer(XGLMSpecialTokens, PreTrainedTokenizer):
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

    vocab_files_names: ClassVar[dict[str, str]] = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

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
        self.vocab_file = str(vocab_file)
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        self.newline_to_eos = newline_to_eos
        self._model_bytes = read_bytes(vocab_file)
        self.sp_model = self._load()
        kwargs[ADDITIONAL] = with_made_up_words(kwargs.get(ADDITIONAL))
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            sp_model_kwargs=self.sp_model_kwargs,
            **kwargs,
        )

    def _load(self) -> Any:
        processor = sentencepiece.SentencePieceProcessor(**self.sp_model_kwargs)
        try:
            processor.LoadFromSerializedProto(self._model_bytes)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.vocab_file} cannot be read as a sentencepiece model: {error}"
            ) from error
        pieces = len(processor)
        self._fairseq_ids = {token: number for number, token in enumerate(FAIRSEQ_TOKENS)}
        self._fairseq_ids.update(
            {word: pieces + FAIRSEQ_OFFSET + n for n, word in enumerate(MADE_UP_WORDS)}
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
        return len(self.sp_model) + FAIRSEQ_OFFSET + len(MADE_UP_WORDS)

    def get_vocab(self) -> dict[str, int]:
        """Return the whole vocabulary, added tokens included, as token to id."""
        vocab = {self._convert_id_to_token(number): number for number in range(self.vocab_size)}
        vocab.update(self.added_tokens_encoder)
        return vocab

    def _known_id(self, token: str) -> int | None:
        number = self._convert_token_to_id(token)
        return None if number == self._fairseq_ids["<unk>"] and token != "<unk>" else number

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
        settings = super()._settings_to_save()
        settings["sp_model_kwargs"] = self.sp_model_kwargs
        if self.newline_to_eos:
            settings["newline_to_eos"] = True
        return settings


def save_model(
    content: bytes, save_directory: str | os.PathLike[str], filename_prefix: str | None
) -> str:
    """Write a sentencepiece model into a folder, and return its path."""
    prefix = f"{filename_prefix}-" if filename_prefix else ""
    path: Path = prepare_folder(save_directory) / f"{prefix}{VOCAB_FILES_NAMES['vocab_file']}"
    if not (path.is_file() and path.read_bytes() == content):
        write_atomically(path, content)
    return str(path)
