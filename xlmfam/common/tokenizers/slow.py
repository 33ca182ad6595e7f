"""The base of tokenizers that work in Python."""

from __future__ import annotations

from itertools import chain
from typing import Any

from tokenizers import AddedToken

from xlmfam.common.errors import XlmfamError

from .added_tokens import AddedVocabulary
from .base import PreTrainedTokenizerBase
from .encoding import BatchEncoding
from .options import CallOptions
from .special_tokens import as_added_token


class OffsetsNotAvailableError(XlmfamError, NotImplementedError):
    """Offsets were asked of a tokenizer that does not keep track of them."""


class PreTrainedTokenizer(PreTrainedTokenizerBase):
    """A tokenizer in Python.

    A subclass loads its vocabulary, then calls ``super().__init__``, and fills in `vocab_size`,
    `get_vocab`, `_tokenize`, `_convert_token_to_id`, `_convert_id_to_token`,
    `convert_tokens_to_string` and `save_vocabulary`.

    Args:
        added_tokens_decoder: Added tokens by id, as files give them.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    def __init__(self, **kwargs: Any):
        decoder = kwargs.pop("added_tokens_decoder", None) or {}
        super().__init__(**kwargs)
        self._added = AddedVocabulary()
        for number, token in decoder.items():
            self._added.put(int(number), as_added_token(token))
        missing = [
            token for token in self.all_special_tokens_extended if str(token) not in self._added.ids
        ]
        self.add_tokens(missing, special_tokens=True)

    # -- what a subclass fills in -----------------------------------------------------------

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Return the tokens of a text that holds no added token."""
        raise NotImplementedError

    def _convert_token_to_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, that of ``unk_token`` for others."""
        raise NotImplementedError

    def _convert_id_to_token(self, index: int) -> str:
        """Return the token of an id."""
        raise NotImplementedError

    def prepare_for_tokenization(
        self,
        text: str,
        is_split_into_words: bool = False,  # noqa: ARG002
        **kwargs: Any,
    ) -> tuple[str, dict[str, Any]]:
        """Change a text before anything splits it.

        Args:
            text: The text.
            is_split_into_words: It is one word of a list of them.
            **kwargs: Arguments of the call that only this kind of tokenizer knows.

        Returns:
            The text, and the arguments for `_tokenize`.
        """
        return text, kwargs

    def _known_id(self, token: str) -> int | None:
        """Return the id that the vocabulary has for ``token``, if it has one."""
        return self.get_vocab().get(token)

    # -- the vocabulary ---------------------------------------------------------------------

    @property
    def is_fast(self) -> bool:
        """Always false."""
        return False

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Id by added token, in the order of ids."""
        return {token.content: number for number, token in sorted(self._added.by_id.items())}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added token by id, in the order of ids."""
        return dict(sorted(self._added.by_id.items()))

    def get_added_vocab(self) -> dict[str, int]:
        """Return id by added token."""
        return self.added_tokens_encoder

    def __len__(self) -> int:
        return self.vocab_size + sum(number >= self.vocab_size for number in self._added.by_id)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens to the vocabulary.

        They are looked for in the text as it came. A fast tokenizer looks for those with
        ``normalized=True`` in the normalised text instead, so that full-width letters match, and
        words end elsewhere (``single_word``).

        Args:
            new_tokens: A token or a list of them; an ``AddedToken`` says how it is matched.
            special_tokens: They are special: never split, and skipped in decoding when asked.

        Returns:
            How many tokens the vocabulary lacked.
        """
        if isinstance(new_tokens, (str, AddedToken)):
            new_tokens = [new_tokens]
        added = 0
        for item in new_tokens or []:
            token = as_added_token(item, special=special_tokens)
            if not token.content:
                continue
            if special_tokens and not token.special:
                token.special = True
            number = self._added.ids.get(token.content)
            if number is None:
                number = self._known_id(token.content)
            if number is None:
                number = max([self.vocab_size - 1, *self._added.by_id]) + 1
                added += 1
            self._added.put(number, token)
        return added

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several."""
        if tokens is None:
            return None
        if isinstance(tokens, str):
            number = self._added.ids.get(tokens)
            return self._convert_token_to_id(tokens) if number is None else number
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the tokens of several.

        Args:
            ids: An id or a list of them.
            skip_special_tokens: Leave special tokens out of a list.
        """
        if isinstance(ids, int):
            token = self._added.by_id.get(ids)
            return self._convert_id_to_token(ids) if token is None else token.content
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
            **kwargs: Options of one kind of tokenizer.
        """
        first = self._tokens(text, kwargs)
        second = None if pair is None else self._tokens(pair, kwargs)
        if not add_special_tokens:
            return first + (second or [])
        ids = self.build_inputs_with_special_tokens(
            self.convert_tokens_to_ids(first),
            None if second is None else self.convert_tokens_to_ids(second),
        )
        return self.convert_ids_to_tokens(ids)

    def _tokens(self, text: str, kwargs: dict[str, Any]) -> list[str]:
        text, kwargs = self.prepare_for_tokenization(text, **kwargs)
        parts = self._added.split(text)
        return list(
            chain.from_iterable(
                [part] if is_token else self._tokenize(part, **kwargs) for part, is_token in parts
            )
        )

    def _ids_of(self, text: Any, options: CallOptions, kwargs: dict[str, Any]) -> list[int]:
        """Return the ids of a text, of a list of words, of tokens, or ids as they are."""
        if isinstance(text, str):
            return self.convert_tokens_to_ids(self._tokens(text, kwargs))
        if isinstance(text, (list, tuple)):
            if all(isinstance(item, int) for item in text):
                return list(text)
            if all(isinstance(item, str) for item in text):
                if not options.is_split_into_words:
                    return self.convert_tokens_to_ids(list(text))
                words = (
                    self._tokens(word, {**kwargs, "is_split_into_words": True}) for word in text
                )
                return self.convert_tokens_to_ids(list(chain.from_iterable(words)))
        raise XlmfamError(f"text is {text!r}; it may be a string, a list of strings or of ids")

    def _encode(
        self, inputs: list[Any], options: CallOptions, batched: bool, **kwargs: Any
    ) -> BatchEncoding:
        if options.return_offsets_mapping:
            raise OffsetsNotAvailableError(
                f"return_offsets_mapping=True: {type(self).__name__} does not keep track of "
                "offsets; a fast tokenizer does"
            )
        columns: dict[str, Any] = {}
        pairs = False
        for item in inputs:
            text, pair = self._as_pair(item, options, batched)
            pairs = pairs or pair is not None
            row = self._prepare(
                self._ids_of(text, options, kwargs),
                None if pair is None else self._ids_of(pair, options, kwargs),
                options,
            )
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        if columns:
            columns = self._pad_columns(columns, options, batched=True)
        else:
            columns = {name: [] for name in self._columns_of(options)}
        kind = options.return_tensors
        if not batched and kind is None:
            columns = {name: value[0] for name, value in columns.items()}
        return BatchEncoding(columns, tensor_type=kind, n_sequences=2 if pairs else 1)

    @staticmethod
    def _as_pair(item: Any, options: CallOptions, batched: bool) -> tuple[Any, Any]:
        """Tell a pair from a list of words (or of tokens, or of ids)."""
        if not isinstance(item, (list, tuple)):
            return item, None
        words = options.is_split_into_words
        if words and not (item and isinstance(item[0], (list, tuple))):
            return item, None
        if isinstance(item, tuple) or (batched and len(item) == 2):
            if len(item) != 2:
                raise XlmfamError(f"an input is {item!r}; a pair has two texts")
            return item[0], item[1]
        return item, None

    @staticmethod
    def _columns_of(options: CallOptions) -> list[str]:
        names = ["input_ids"]
        names += ["token_type_ids"] if options.return_token_type_ids else []
        names += ["special_tokens_mask"] if options.return_special_tokens_mask else []
        return names + (["attention_mask"] if options.return_attention_mask else [])

    # -- decoding ---------------------------------------------------------------------------

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens; a subclass knows how its tokens join."""
        return " ".join(tokens)

    def _decode(
        self,
        ids: list[int],
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool = True,
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        special = set(self.all_special_tokens)
        own = {
            content
            for content, number in self._added.ids.items()
            if content not in special
            or (number >= self.vocab_size and content in self.additional_special_tokens)
        }
        texts: list[str] = []
        run: list[str] = []
        for token in tokens:
            if token in own:
                # What a user added is text as it stands, and no piece of a word.
                if run:
                    texts.append(self.convert_tokens_to_string(run))
                    run = []
                texts.append(token)
            else:
                run.append(token)
        if run:
            texts.append(self.convert_tokens_to_string(run))
        return (" " if spaces_between_special_tokens else "").join(texts)

    def __repr__(self) -> str:
        lines = "".join(f"\n\t{number}: {t!r}," for number, t in self.added_tokens_decoder.items())
        return f"{super().__repr__()},  added_tokens_decoder={{{lines}\n}}"
