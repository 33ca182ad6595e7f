"""The base of tokenizers that the ``tokenizers`` library runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Encoding, Tokenizer

from xlmfam.common.errors import CheckpointError, XlmfamError

from .base import PreTrainedTokenizerBase
from .convert_sentencepiece import readable_by_older, with_exact_normalizer
from .encoding import BatchEncoding
from .exact_normalizer import looks_different
from .files import TOKENIZER_FILE, prepare_folder, write_atomically
from .options import CallOptions
from .padding import PaddingStrategy
from .special_tokens import as_added_token
from .truncation import TruncationStrategy


def read_tokenizer_file(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"tokenizer_file {path} does not exist")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}") from error


class PreTrainedTokenizerFast(PreTrainedTokenizerBase):
    """A tokenizer that the ``tokenizers`` library runs.

    Args:
        tokenizer_object: A ``tokenizers.Tokenizer``.
        tokenizer_file: A ``tokenizer.json``, instead.
        added_tokens_decoder: Added tokens by id, as files give them.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"tokenizer_file": TOKENIZER_FILE}

    def __init__(
        self,
        tokenizer_object: Tokenizer | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ):
        decoder = kwargs.pop("added_tokens_decoder", None) or {}
        if "_tokenizer" in self.__dict__:
            pass  # a subclass has built its own
        elif tokenizer_object is not None:
            # A copy: calls set truncation and padding on it.
            self._tokenizer = Tokenizer.from_str(tokenizer_object.to_str())
        elif tokenizer_file is not None:
            self._tokenizer = read_tokenizer_file(tokenizer_file)
        else:
            raise XlmfamError("tokenizer_object or tokenizer_file is needed; both are None")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._exact: dict[Any, tuple[int, Tokenizer | None]] = {}
        super().__init__(**kwargs)
        known = {token.content for token in self.added_tokens_decoder.values()}
        missing = [as_added_token(token) for _, token in sorted(decoder.items())]
        for token in missing:
            if token.content not in known:
                self.add_tokens([token], special_tokens=token.special)
                known.add(token.content)
        self.add_tokens(
            [token for token in self.all_special_tokens_extended if str(token) not in known],
            special_tokens=True,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_exact": {}}

    # -- the vocabulary ---------------------------------------------------------------------

    @property
    def is_fast(self) -> bool:
        """Always true."""
        return True

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether `save_vocabulary` can write what a slow tokenizer reads."""
        return False

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of the ``tokenizers`` library."""
        return self._tokenizer

    @property
    def decoder(self) -> Any:
        """The decoder of the ``tokenizers`` library."""
        return self._tokenizer.decoder

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Return the whole vocabulary, added tokens included, as token to id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """The same as `get_vocab`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added token by id, in the order of ids."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Id by added token, in the order of ids."""
        return {token.content: number for number, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Return id by added token."""
        return self.added_tokens_encoder

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens to the vocabulary.

        Args:
            new_tokens: A token or a list of them; an ``AddedToken`` says how it is matched.
            special_tokens: They are special: never split, and skipped in decoding when asked.

        Returns:
            How many tokens the vocabulary lacked.
        """
        if isinstance(new_tokens, (str, AddedToken)):
            new_tokens = [new_tokens]
        tokens = [as_added_token(token, special=special_tokens) for token in new_tokens or []]
        before = len(self)
        if special_tokens:
            self._tokenizer.add_special_tokens(tokens)
        else:
            self._tokenizer.add_tokens(tokens)
        self._exact.clear()
        return len(self) - before

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens one text (or a pair) gets."""
        return self._tokenizer.num_special_tokens_to_add(pair)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several; that of ``unk_token`` for unknowns."""
        if tokens is None:
            return None
        if isinstance(tokens, str):
            number = self._tokenizer.token_to_id(tokens)
            if number is not None:
                return number
            # Not unk_token_id: that asks for the id of unk_token, which may be unknown too.
            unknown = self._roles.get("unk_token")
            return None if unknown is None else self._tokenizer.token_to_id(str(unknown))
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the tokens of several; ``None`` for unknown ids.

        Args:
            ids: An id or a list of them.
            skip_special_tokens: Leave special tokens out of a list.
        """
        if isinstance(ids, int):
            return self._tokenizer.id_to_token(ids) if ids >= 0 else None
        special = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.convert_ids_to_tokens(int(i)) for i in ids if int(i) not in special]

    # -- encoding ---------------------------------------------------------------------------

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Return the tokens of a text as strings.

        Args:
            text: The text.
            pair: Its tokens follow.
            add_special_tokens: Put the special tokens of the model around them.
            **kwargs: Other options of a call.
        """
        result = self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **kwargs)
        return result.tokens()

    def _working_tokenizer(self, inputs: list[Any]) -> Tokenizer:
        """Return the tokenizer for ``inputs``: the plain one, or one that is exact and slower."""
        if any(self._needs_exact(text) for text in _texts(inputs)):
            exact = self._variant("exact", self._make_exact)
            return self._tokenizer if exact is None else exact
        return self._tokenizer

    def _needs_exact(self, text: str) -> bool:
        """Say whether the plain tokenizer might split ``text`` otherwise than sentencepiece."""
        return looks_different(text)

    def _make_exact(self) -> Tokenizer | None:
        special = [t.content for t in self.added_tokens_decoder.values() if not t.normalized]
        return with_exact_normalizer(self._tokenizer, special)

    def _variant(self, key: Any, make: Any) -> Tokenizer | None:
        """Return a tokenizer made from the plain one, made anew when that has new tokens."""
        size, tokenizer = self._exact.get(key, (None, None))
        if size != len(self):
            tokenizer = make()
            self._exact[key] = (len(self), tokenizer)
        if tokenizer is not None and self._tokenizer.post_processor is not None:
            tokenizer.post_processor = self._tokenizer.post_processor
        return tokenizer

    def _configure(self, tokenizer: Tokenizer, options: CallOptions, pair: bool) -> None:
        """Set truncation and padding of the library to ``options``."""
        if options.truncation is TruncationStrategy.DO_NOT_TRUNCATE or options.max_length is None:
            tokenizer.no_truncation()
        else:
            extra = self.num_special_tokens_to_add(pair) if options.add_special_tokens else 0
            room = options.max_length - extra
            if room < 0:
                raise XlmfamError(
                    f"max_length={options.max_length} leaves no room: the special tokens alone "
                    f"are {extra}"
                )
            if options.stride and options.stride >= room:
                raise XlmfamError(
                    f"stride={options.stride} must be less than the {room} tokens that "
                    f"max_length={options.max_length} leaves beside the special tokens"
                )
            tokenizer.enable_truncation(
                options.max_length,
                stride=options.stride,
                strategy=options.truncation.value,
                direction=self.truncation_side,
            )
        if options.padding is PaddingStrategy.DO_NOT_PAD:
            tokenizer.no_padding()
        else:
            fixed = options.padding is PaddingStrategy.MAX_LENGTH
            tokenizer.enable_padding(
                length=options.max_length if fixed else None,
                direction=options.padding_side,
                pad_id=self.pad_token_id,
                pad_token=self.pad_token,
                pad_type_id=self.pad_token_type_id,
                pad_to_multiple_of=options.pad_to_multiple_of,
            )

    def _encode(
        self,
        inputs: list[Any],
        options: CallOptions,
        batched: bool,
        **kwargs: Any,  # noqa: ARG002
    ) -> BatchEncoding:
        words = options.is_split_into_words
        items = [_as_input(item, words) for item in inputs]
        pair = any(isinstance(item, tuple) for item in items)
        tokenizer = self._working_tokenizer(items)
        self._configure(tokenizer, options, pair)
        try:
            encodings = tokenizer.encode_batch(
                items, add_special_tokens=options.add_special_tokens, is_pretokenized=words
            )
        except (TypeError, ValueError):
            raise
        except Exception as error:  # the library raises plain Exception
            raise XlmfamError(f"the text cannot be encoded: {error}") from error
        rows: list[Encoding] = []
        samples: list[int] = []
        for number, encoding in enumerate(encodings):
            more = encoding.overflowing if options.return_overflowing_tokens else []
            rows += [encoding, *more]
            samples += [number] * (1 + len(more))
        data = _columns(rows, options)
        if options.return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        for row in data["input_ids"]:
            self._warn_if_long(len(row), options)
        if not batched and options.return_tensors is None and len(rows) == 1:
            single = not options.return_overflowing_tokens
            if single:
                data = {k: v[0] if isinstance(v[0], list) else v for k, v in data.items()}
        return BatchEncoding(
            data, rows, tensor_type=options.return_tensors, n_sequences=2 if pair else 1
        )

    # -- decoding ---------------------------------------------------------------------------

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens."""
        if self._tokenizer.decoder is None:
            return " ".join(tokens)
        return self._tokenizer.decoder.decode(tokens)

    def _decode(
        self,
        ids: list[int],
        skip_special_tokens: bool,
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        if any(number < 0 for number in ids):
            raise XlmfamError(
                f"token_ids has {min(ids)}; ids are at least 0 (labels use -100 for positions "
                "that do not count: replace it first)"
            )
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    # -- files ------------------------------------------------------------------------------

    def save_vocabulary(
        self,
        save_directory: str | os.PathLike[str],  # noqa: ARG002
        filename_prefix: str | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Write the vocabulary files of the slow tokenizer; the base class has none.

        Args:
            save_directory: The folder; it is created where it is missing.
            filename_prefix: Put before each file name, with a hyphen.
        """
        return ()

    def _save_vocabularies(
        self, folder: Path, legacy_format: bool | None, filename_prefix: str | None
    ) -> tuple[str, ...]:
        if legacy_format and not self.can_save_slow_tokenizer:
            raise XlmfamError(
                f"legacy_format=True: {type(self).__name__} was loaded without the file that a "
                "slow tokenizer needs"
            )
        written: tuple[str, ...] = ()
        if legacy_format is not False and self.can_save_slow_tokenizer:
            written += self.save_vocabulary(folder, filename_prefix)
        if not legacy_format:
            prefix = f"{filename_prefix}-" if filename_prefix else ""
            path = prepare_folder(folder) / f"{prefix}{TOKENIZER_FILE}"
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            write_atomically(path, readable_by_older(self._tokenizer.to_str()).encode("utf-8"))
            written += (str(path),)
        return written


def _columns(rows: list[Encoding], options: CallOptions) -> dict[str, Any]:
    """Return the columns that ``options`` ask for."""
    data: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
    if options.return_token_type_ids:
        data["token_type_ids"] = [row.type_ids for row in rows]
    if options.return_attention_mask:
        data["attention_mask"] = [row.attention_mask for row in rows]
    if options.return_special_tokens_mask:
        data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
    if options.return_offsets_mapping:
        data["offset_mapping"] = [row.offsets for row in rows]
    if options.return_length:
        data["length"] = [len(row.ids) for row in rows]
    return data


def _as_input(item: Any, words: bool) -> Any:
    """Return an input as the library takes it: pairs are tuples, lists of words are lists."""
    if isinstance(item, str):
        return item
    parts = list(item)
    if words:
        nested = bool(parts) and isinstance(parts[0], (list, tuple))
        return (list(parts[0]), list(parts[1])) if nested and len(parts) == 2 else parts
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise XlmfamError(
            f"an input is {item!r}; it may be a text or a pair of texts, and with "
            "is_split_into_words=True a list of words"
        )
    return (parts[0], parts[1])


def _texts(inputs: Any) -> Any:
    """Yield every string in nested lists and tuples."""
    for item in inputs:
        if isinstance(item, str):
            yield item
        else:
            yield from _texts(item)
