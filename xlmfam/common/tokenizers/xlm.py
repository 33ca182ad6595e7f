"""XLM's tokenizer: text is cleaned, split into words by language, and words into byte pairs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from xlmfam.common.errors import XlmfamError

from .encoding import BatchEncoding
from .files import (
    CONFIG_FILE,
    Locator,
    prepare_folder,
    read_json,
    take_location,
    write_atomically,
    write_json,
)
from .options import CallOptions
from .slow import PreTrainedTokenizer
from .xlm_bpe import END, BytePairs, lines_of_merges, read_merges
from .xlm_moses import moses_words
from .xlm_segmenters import split_chinese, split_japanese, split_thai
from .xlm_text import clean, lower_each, lower_without_accents, strip_romanian

VOCAB_FILES_NAMES = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
DEFAULT_LANG = "en"
ADDITIONAL_SPECIAL_TOKENS = tuple(f"<special{number}>" for number in range(10))

# Two checkpoints tell capital letters apart; their files say so only in later uploads.
CASED_CHECKPOINTS = ("xlm-mlm-17-1280", "xlm-mlm-100-1280")

_LONGEST_CACHED = 64
_CACHE_SIZE = 1 << 17


class XLMSpecialTokens:
    """How XLM puts texts together: ``<s> A </s>``, and ``<s> A </s> B </s>`` for pairs."""

    bos_token_id: Any
    sep_token_id: Any
    all_special_ids: Any

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put ``<s>`` before, and ``</s>`` after each text.

        Args:
            token_ids_0: Ids of the first text.
            token_ids_1: Ids of the second text.
        """
        row = [self.bos_token_id, *token_ids_0, self.sep_token_id]
        return row if token_ids_1 is None else [*row, *token_ids_1, self.sep_token_id]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return 0 for the first text and its special tokens, 1 for the second and its last one.

        Args:
            token_ids_0: Ids of the first text.
            token_ids_1: Ids of the second text.
        """
        types = [0] * (len(token_ids_0) + 2)
        return types if token_ids_1 is None else types + [1] * (len(token_ids_1) + 1)

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
        mask = [1, *[0] * len(token_ids_0), 1]
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]


class XLMTokenizer(XLMSpecialTokens, PreTrainedTokenizer):
    """XLM's tokenizer.

    A text is cleaned by the rules of its language, split into words by Moses (Chinese by jieba,
    Thai by pythainlp, Japanese by KyTea: optional packages), put into lower case without accents
    where the model is not cased, and its words are split into byte pairs.

    Two arguments of a call are its own. ``lang`` says what language the texts are in: a code such
    as ``"de"``, or for a batch a list with one for each text; the two texts of a pair may have one
    each, as a tuple. ``bypass_tokenizer=True`` takes texts as words with spaces between them,
    which are cleaned and lower-cased already.

    ``token_type_ids`` are returned when ``return_token_type_ids=True`` asks for them: the model
    would add word embeddings for them, which it was not trained with.

    Args:
        vocab_file: ``vocab.json``, token to id.
        merges_file: ``merges.txt``, a pair of symbols in each line, best first.
        unk_token: Stands for what the vocabulary lacks.
        bos_token: Put before a text.
        sep_token: Put after each text.
        pad_token: Stands in padding.
        cls_token: Not used by XLM itself, which classifies by its first token, ``<s>``.
        mask_token: Stands for words to be guessed.
        additional_special_tokens: Tokens that are never split.
        lang2id: The model's number for each language; ``from_pretrained`` takes it from
            ``config.json`` where ``tokenizer_config.json`` has none.
        id2lang: The opposite; made from ``lang2id`` where it is not given.
        do_lowercase_and_remove_accent: The model knows lower-case letters without marks only.
        kytea_model: KyTea's model, for Japanese. The environment variable ``XLMFAM_KYTEA_MODEL``
            or ``~/local/share/kytea/model.bin`` serves where it is ``None``.
        original_steps: Prepare text as the scripts of the original release did where transformers
            departs from them: newlines, tabs and other control characters part words instead of
            joining them, and spaces in Thai and Japanese
            are no words (each gives two ``<unk>`` in cased models). Off by default, where
            ids are those of transformers; saved with the tokenizer.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    call_options: ClassVar[tuple[str, ...]] = ("lang", "bypass_tokenizer")

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        merges_file: str | os.PathLike[str],
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        sep_token: Any = "</s>",
        pad_token: Any = "<pad>",
        cls_token: Any = "</s>",
        mask_token: Any = "<special1>",
        additional_special_tokens: Sequence[Any] = ADDITIONAL_SPECIAL_TOKENS,
        lang2id: Mapping[str, int] | None = None,
        id2lang: Mapping[Any, str] | None = None,
        do_lowercase_and_remove_accent: bool = True,
        kytea_model: str | os.PathLike[str] | None = None,
        original_steps: bool = False,
        **kwargs: Any,
    ):
        self.vocab_file, self.merges_file = str(vocab_file), str(merges_file)
        self.encoder = _read_vocabulary(vocab_file)
        self.decoder = {number: token for token, number in self.encoder.items()}
        self.byte_pairs = BytePairs(read_merges(merges_file))
        self.lang2id, self.id2lang = both_ways(lang2id, id2lang)
        self.do_lowercase_and_remove_accent = do_lowercase_and_remove_accent
        self.kytea_model = None if kytea_model is None else os.fspath(kytea_model)
        self.original_steps = original_steps
        self._forget()
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            additional_special_tokens=additional_special_tokens,
            **kwargs,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *init_inputs: Any,
        **kwargs: Any,
    ) -> Any:
        """Load a tokenizer from a folder or from the hub.

        The languages are those of ``config.json`` where ``tokenizer_config.json`` has none.

        Args:
            pretrained_model_name_or_path: A folder or the id of a hub repository.
            *init_inputs: Positional arguments of the tokenizer.
            **kwargs: See `PreTrainedTokenizerBase.from_pretrained`.

        Returns:
            The tokenizer.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.is_file():
            locator = Locator(pretrained_model_name_or_path, **take_location(dict(kwargs)))
            kwargs = {**_missing_settings(locator), **kwargs}
        return super().from_pretrained(pretrained_model_name_or_path, *init_inputs, **kwargs)

    # -- the vocabulary ---------------------------------------------------------------------

    @property
    def do_lower_case(self) -> bool:
        """The same as `do_lowercase_and_remove_accent`."""
        return self.do_lowercase_and_remove_accent

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Return the whole vocabulary, added tokens included, as token to id."""
        return {**self.encoder, **self.added_tokens_encoder}

    def _known_id(self, token: str) -> int | None:
        return self.encoder.get(token)

    def _convert_token_to_id(self, token: str) -> int:
        number = self.encoder.get(token)
        if number is None:
            number = self.unk_token_id if token != self.unk_token else None
        if number is None:
            raise XlmfamError(f"the vocabulary lacks {token!r}, and there is no unk_token in it")
        return number

    def _convert_id_to_token(self, index: int) -> str:
        # A model may have more rows than its vocabulary has tokens.
        return self.decoder.get(index, self.unk_token or "")

    # -- texts to words ---------------------------------------------------------------------

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Put a text into lower case before words are looked for, as transformers does.

        Args:
            text: The text.
            is_split_into_words: It is one word of a list of them.
            **kwargs: Passed through.
        """
        if self.do_lowercase_and_remove_accent and not self.original_steps:
            text = self._lower_but_for_tokens(text)
        return super().prepare_for_tokenization(text, is_split_into_words, **kwargs)

    def _lower_but_for_tokens(self, text: str) -> str:
        parts = self._added.split(text)
        return "".join([part if is_token else lower_each(part) for part, is_token in parts])

    def _words(self, text: str, lang: str | None, bypass: bool) -> list[str]:
        """Return the words of a text, in the case in which they stand."""
        if bypass:
            return text.split()
        lang = DEFAULT_LANG if lang is None else lang
        self._check_lang(lang)
        if lang == "zh":
            return self._clean(" ".join(split_chinese(text)), lang).split()
        text = self._clean(text, lang)
        if lang in ("th", "ja"):
            words = split_thai(text) if lang == "th" else split_japanese(text, self.kytea_model)
            return [word for word in words if word.strip()] if self.original_steps else words
        if lang == "ro":
            text = strip_romanian(text)
        return moses_words(lang).split(text)

    def _clean(self, text: str, lang: str) -> str:
        if not self.original_steps:
            return clean(text, lang)
        # The original reads line by line and puts a space for each other control character. Moses
        # would otherwise drop carriage returns first.
        return clean(text.replace("\r", " "), lang, " ")

    def _check_lang(self, lang: Any) -> None:
        if not isinstance(lang, str):
            raise XlmfamError(
                f"lang is {lang!r}; it may be a language code such as 'en', or for a batch a list "
                "with one for each text"
            )
        if self.lang2id and lang not in self.lang2id and lang != DEFAULT_LANG:
            known = ", ".join(sorted(self.lang2id))
            raise XlmfamError(f"lang is {lang!r}; the languages of this model are {known}")

    def _pieces(self, word: str, lower: bool) -> tuple[str, ...]:
        """Return the byte pairs of a word, none where nothing but marks is in it."""
        if not lower:
            return self.byte_pairs.split(word) if word else ()
        word = lower_without_accents(word)
        if " " not in word:
            return self.byte_pairs.split(word) if word else ()
        parts = [self.byte_pairs.split(part) for part in word.split(" ") if part]
        return tuple(itertools.chain.from_iterable(parts))

    def _tokenize(
        self,
        text: str,
        lang: str | None = DEFAULT_LANG,
        bypass_tokenizer: bool = False,
        **kwargs: Any,  # noqa: ARG002
    ) -> list[str]:
        lower = self.do_lowercase_and_remove_accent and not bypass_tokenizer
        words = self._words(text, lang, bypass_tokenizer)
        return [piece for word in words for piece in self._pieces(word, lower)]

    def bpe(self, token: str) -> str:
        """Return the byte pairs of a word with spaces between them."""
        return " ".join(self.byte_pairs.split(token))

    # -- words to ids -----------------------------------------------------------------------

    def _forget(self) -> None:
        self._known_state: Any = None
        self._unknown: int | None = None
        self._word_ids: dict[bool, dict[str, tuple[int, ...]]] = {True: {}, False: {}}

    def _ids_cache(self, lower: bool) -> dict[str, tuple[int, ...]]:
        """Return the ids of words seen before, emptied where the vocabulary has changed."""
        state = (self.unk_token, len(self._added.ids))
        if state != self._known_state:
            self._forget()
            self._known_state = state
            self._unknown = self.unk_token_id
        cache = self._word_ids[lower]
        if len(cache) >= _CACHE_SIZE:
            cache.clear()
        return cache

    def _ids_of(self, text: Any, options: CallOptions, kwargs: dict[str, Any]) -> list[int]:
        if not isinstance(text, str):
            return super()._ids_of(text, options, kwargs)
        text, kwargs = self.prepare_for_tokenization(text, **kwargs)
        lang, bypass = kwargs.get("lang", DEFAULT_LANG), bool(kwargs.get("bypass_tokenizer"))
        lower = self.do_lowercase_and_remove_accent and not bypass
        known = self._ids_cache(lower)
        ids: list[int] = []
        for part, is_token in self._added.split(text):
            if is_token:
                ids.append(self._added.ids[part])
                continue
            for word in self._words(part, lang, bypass):
                found = known.get(word)
                if found is None:
                    found = self._numbers(self._pieces(word, lower))
                    if len(word) <= _LONGEST_CACHED:
                        known[word] = found
                ids += found
        return ids

    def _numbers(self, pieces: tuple[str, ...]) -> tuple[int, ...]:
        """Return the ids of pieces: `convert_tokens_to_ids` without a call for each."""
        own, known, unknown = self._added.ids, self.encoder, self._unknown
        if unknown is None:
            return tuple(self.convert_tokens_to_ids(pieces))  # which says what is missing
        return tuple([own[p] if p in own else known.get(p, unknown) for p in pieces])

    def _encode(
        self, inputs: list[Any], options: CallOptions, batched: bool, **kwargs: Any
    ) -> BatchEncoding:
        lang = kwargs.get("lang")
        if lang is None or isinstance(lang, str):
            return super()._encode(inputs, options, batched, **kwargs)
        del kwargs["lang"]
        rows = []
        for item, own in zip(inputs, _per_input(lang, len(inputs), batched), strict=True):
            text, pair = self._as_pair(item, options, batched)
            first, second = _per_text(own, pair)
            first_ids = self._ids_of(text, options, {**kwargs, "lang": first})
            if pair is not None:
                pair = self._ids_of(pair, options, {**kwargs, "lang": second})
            # A tuple of two is what the base takes for a text and its pair, if there is one.
            rows.append((first_ids, pair))
        return super()._encode(rows, options, batched, **kwargs)

    # -- tokens to text and files -----------------------------------------------------------

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens, with a space after each word."""
        return "".join(tokens).replace(END, " ").strip()

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write ``vocab.json`` and ``merges.txt``.

        Args:
            save_directory: The folder; it is created where it is missing.
            filename_prefix: Put before the file names, with a hyphen.

        Returns:
            The paths written.
        """
        folder = prepare_folder(save_directory)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        vocab, merges = (folder / f"{prefix}{name}" for name in VOCAB_FILES_NAMES.values())
        write_json(vocab, self.encoder)
        content = "".join(lines_of_merges(self.byte_pairs.ranks))
        write_atomically(merges, content.encode("utf-8"))
        return str(vocab), str(merges)

    def _settings_to_save(self) -> dict[str, Any]:
        settings = super()._settings_to_save()
        settings["do_lowercase_and_remove_accent"] = self.do_lowercase_and_remove_accent
        settings["lang2id"], settings["id2lang"] = self.lang2id, self.id2lang
        if self.original_steps:
            settings["original_steps"] = True
        return settings

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known_state": None, "_word_ids": {True: {}, False: {}}}


def both_ways(
    lang2id: Mapping[str, int] | None, id2lang: Mapping[Any, str] | None
) -> tuple[dict[str, int] | None, dict[int, str] | None]:
    """Return both mappings, each made from the other where it is missing.

    Raises:
        XlmfamError: they do not say the same.
    """
    if lang2id is None and id2lang is None:
        return None, None
    try:
        there = {str(lang): int(number) for lang, number in (lang2id or {}).items()}
        # JSON has strings for keys.
        back = {int(number): str(lang) for number, lang in (id2lang or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise XlmfamError(
            f"lang2id is {lang2id!r} and id2lang is {id2lang!r}; they may be mappings between "
            "language codes and numbers"
        ) from error
    there = there or {lang: number for number, lang in back.items()}
    back = back or {number: lang for lang, number in there.items()}
    if {number: lang for lang, number in there.items()} != back:
        raise XlmfamError(f"lang2id {there} and id2lang {back} do not say the same")
    return there, back


def _read_vocabulary(path: str | os.PathLike[str]) -> dict[str, int]:
    vocabulary = read_json(Path(path))
    wrong = next((item for item in vocabulary.items() if type(item[1]) is not int), None)
    if wrong is not None:
        raise XlmfamError(f"{path} has {wrong[1]!r} as id of {wrong[0]!r}; it may be a number")
    return vocabulary


def _missing_settings(locator: Locator) -> dict[str, Any]:
    """Return what ``tokenizer_config.json`` should say and, in older files, does not."""
    settings = locator.read_json(CONFIG_FILE)
    found: dict[str, Any] = {}
    if settings.get("lang2id") is None and settings.get("id2lang") is None:
        config = locator.read_json("config.json")
        for name in ("lang2id", "id2lang"):
            if config.get(name):
                found[name] = config[name]
    name = Path(locator.name_or_path).name
    if "do_lowercase_and_remove_accent" not in settings and name in CASED_CHECKPOINTS:
        found["do_lowercase_and_remove_accent"] = False
    return found


def _per_input(lang: Any, count: int, batched: bool) -> list[Any]:
    """Return the language (or those of a pair) of each input."""
    if not isinstance(lang, (list, tuple)):
        raise XlmfamError(
            f"lang is {lang!r}; it may be a language code such as 'en', or for a batch a list "
            "with one for each text"
        )
    if not batched:
        return [lang]
    if len(lang) != count:
        raise XlmfamError(f"lang has {len(lang)} languages, and there are {count} texts")
    return list(lang)


def _per_text(lang: Any, pair: Any) -> tuple[Any, Any]:
    """Return the languages of a text and of its pair."""
    if not isinstance(lang, (list, tuple)):
        return lang, lang
    wanted = 1 if pair is None else 2
    if len(lang) != wanted:
        what = "one text" if pair is None else "the two texts of a pair"
        raise XlmfamError(f"lang is {lang!r} for {what}")
    return lang[0], lang[-1]
