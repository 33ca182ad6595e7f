"""What a tokenizer call returns: a dictionary that also knows where each token came from."""

from __future__ import annotations

from collections import UserDict
from typing import Any, NamedTuple

from tokenizers import Encoding

from xlmfam.common.errors import XlmfamError

from .tensors import TensorType, as_lists, tensor_maker


class CharSpan(NamedTuple):
    """A range of characters in the text; ``end`` is exclusive."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """A range of tokens; ``end`` is exclusive."""

    start: int
    end: int


class BatchEncoding(UserDict):
    """The result of a tokenizer call.

    A dictionary from names such as ``input_ids`` to lists or tensors, whose values can be had as
    attributes too. Fast tokenizers add their ``encodings``, which answer to the questions about
    words, characters and sequences below; an integer key gives the encoding of that row.

    Args:
        data: The values by name.
        encoding: One encoding of the ``tokenizers`` library, or a list of one for each row.
        tensor_type: Convert the values at once; one of ``np``, ``pt``, ``tf``, ``jax``.
        prepend_batch_axis: Put each value into a batch of one before it is converted.
        n_sequences: 1 for single texts, 2 for pairs.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: Encoding | list[Encoding] | None = None,
        tensor_type: str | TensorType | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ):
        super().__init__(data)
        self._encodings = [encoding] if isinstance(encoding, Encoding) else encoding
        if n_sequences is None and self._encodings:
            n_sequences = self._encodings[0].n_sequences
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def n_sequences(self) -> int | None:
        """How many texts made up each row: 1, 2, or ``None`` where that is not known."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether the questions about words and characters can be answered."""
        return self._encodings is not None

    @property
    def encodings(self) -> list[Encoding] | None:
        """The encodings of the ``tokenizers`` library, ``None`` from a slow tokenizer."""
        return self._encodings

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            return self.data[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        if self._encodings is not None:
            return self._encodings[item]
        raise KeyError(
            f"key {item!r}: integers pick the encoding of a row, which only fast tokenizers make; "
            f"the names here are {list(self.data)}"
        )

    def __getattr__(self, name: str) -> Any:
        # ``data`` itself is missing while a copy or an unpickled object is being built.
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"BatchEncoding has no {name!r}; it holds {list(data)}")

    def __getstate__(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "encodings": self._encodings,
            "n_sequences": self._n_sequences,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data = state.get("data", {})
        self._encodings = state.get("encodings")
        self._n_sequences = state.get("n_sequences")

    def __repr__(self) -> str:
        return repr(self.data)

    # -- where tokens came from -------------------------------------------------------------

    def _rows(self, method: str) -> list[Encoding]:
        if self._encodings is None:
            raise XlmfamError(
                f"{method}() needs a fast tokenizer; this encoding comes from a slow one, "
                "which does not keep track of positions"
            )
        return self._encodings

    def _row_and_index(
        self, method: str, batch_or_index: int, index: int | None
    ) -> tuple[Encoding, int]:
        rows = self._rows(method)
        if index is None:
            encoding, index = rows[0], batch_or_index
        else:
            encoding = rows[batch_or_index]
        return encoding, index + len(encoding.ids) if index < 0 else index

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of one row as strings."""
        return self._rows("tokens")[batch_index].tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return 0 for tokens of the first text, 1 for the second, ``None`` for special ones."""
        return self._rows("sequence_ids")[batch_index].sequence_ids

    def words(self, batch_index: int = 0) -> list[int | None]:
        """Return the number of the word that each token belongs to (same as `word_ids`)."""
        return self._rows("words")[batch_index].word_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the number of the word that each token belongs to; ``None`` for special ones."""
        return self._rows("word_ids")[batch_index].word_ids

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Return which text (0 or 1) a token comes from."""
        row, token = self._row_and_index("token_to_sequence", batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Return the number of the word that a token belongs to."""
        row, token = self._row_and_index("token_to_word", batch_or_token_index, token_index)
        return row.token_to_word(token)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Return the tokens of a word, or ``None`` where it has none."""
        row, word = self._row_and_index("word_to_tokens", batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        return None if span is None else TokenSpan(*span)

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """Return the characters of a token, or ``None`` for a special token."""
        row, token = self._row_and_index("token_to_chars", batch_or_token_index, token_index)
        span = row.token_to_chars(token)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the token that a character is in, or ``None`` (white space, for one)."""
        row, char = self._row_and_index("char_to_token", batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Return the characters of a word, or ``None`` where it has none."""
        row, word = self._row_and_index("word_to_chars", batch_or_word_index, word_index)
        span = row.word_to_chars(word, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the number of the word that a character is in."""
        row, char = self._row_and_index("char_to_word", batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    # -- tensors ----------------------------------------------------------------------------

    def convert_to_tensors(
        self, tensor_type: str | TensorType | None = None, prepend_batch_axis: bool = False
    ) -> BatchEncoding:
        """Turn the values into tensors, in place.

        Args:
            tensor_type: ``np``, ``pt``, ``tf``, ``jax``, or ``None`` to leave them as they are.
            prepend_batch_axis: Put each value into a batch of one.

        Returns:
            This object.

        Raises:
            XlmfamError: rows are of unequal length, or hold something other than numbers.
            MissingPackageError: the framework is not installed.
        """
        if tensor_type is None:
            return self
        make = tensor_maker(tensor_type)
        for key, value in self.data.items():
            try:
                self.data[key] = make([as_lists(value)] if prepend_batch_axis else value)
            except (ValueError, TypeError) as error:
                raise XlmfamError(
                    f"return_tensors={TensorType.of(tensor_type).value!r}: {key!r} cannot become "
                    f"one tensor ({error}). Rows must be of one length: pass padding=True, and "
                    "truncation=True with max_length to bound it"
                ) from error
        return self

    def to(self, device: Any) -> BatchEncoding:
        """Move the PyTorch tensors to ``device``, in place; other values stay as they are."""
        import torch

        for key, value in self.data.items():
            if isinstance(value, torch.Tensor):
                self.data[key] = value.to(device=device)
        return self
