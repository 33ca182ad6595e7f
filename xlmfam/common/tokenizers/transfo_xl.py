"""Transformer-XL's tokenizer: whole words, as Moses finds them, and numbers in parts.

Where it departs from transformers 4.37.2, on purpose:

- ``add_eos`` and ``add_double_eos`` work in `count_file`, `encode_file` and in calls; there they
  are ignored, so that corpora have no end tokens.
- Special tokens keep their own ids when a vocabulary is built after construction; there they
  stay at 0, 1, 2, the ids of words.
- Vocabularies are saved as JSON and text. Old ``vocab.pkl`` and ``vocab.bin`` are read, and nothing
  in them is executed; there they are written, and unpickled.
- ``lower_case``, ``delimiter`` and the like of an old file hold where the arguments are not given.
- ``never_split`` are strings; there they are regular expressions.
- A vocabulary without ``<unk>`` can be loaded, and says so when it meets an unknown word.
- ``original_steps`` takes text that is tokenised already, as the paper's corpora are.
- Ids outside the vocabulary raise a ``ValueError``; there an ``AssertionError``.
- Ids of files and sentences are NumPy arrays; there they are PyTorch tensors.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.logging import get_logger, progress

from .added_tokens import AddedVocabulary
from .files import Locator, prepare_folder, write_json
from .options import CallOptions
from .slow import PreTrainedTokenizer
from .transfo_xl_text import hyphen_words, join_tokens, split_text
from .transfo_xl_vocabulary import (
    OLD_SUFFIXES,
    WordVocabulary,
    check_options,
    read_words,
    write_text,
)
from .xlm_text import lower_each, normalize_punctuation

if TYPE_CHECKING:
    from collections import Counter

    import numpy as np

logger = get_logger(__name__)

# In the order in which a folder is searched.
VOCAB_FILES_NAMES = {
    "vocab_file": "vocab.json",
    "text_vocab_file": "vocab.txt",
    "pretrained_vocab_file": "vocab.pkl",
    "pretrained_vocab_file_torch": "vocab.bin",
}
# Stands at both ends of a sentence of the One Billion Word benchmark.
SENTENCE_END = "<S>"
# What stands for unknown words in the original's vocabularies, where unk_token is not in one.
_OTHER_UNKNOWN = ("<unk>", "<UNK>")


class TransfoXLTokenizer(PreTrainedTokenizer):
    """Transformer-XL's tokenizer.

    Punctuation is normalised and words are found by Moses; hyphens inside words become ``@-@``,
    and numbers part at commas and points: ``1,000.5`` is ``1 @,@ 000 @.@ 5``. Nothing is put around
    a text. The vocabulary comes from a file, or from texts: `count_file` or `count_sents`, then
    `build_vocab`.

    Two arguments of a call are its own: ``add_eos=True`` puts ``eos_token`` behind a text,
    ``add_double_eos=True`` puts ``<S>`` at both ends.

    Args:
        special: First words of a vocabulary that is built, such as ``["<eos>", "<unk>"]``.
        min_freq: Leave out words that are counted less often.
        max_size: Take the most frequent so many words, with those of ``special`` that the text has.
        lower_case: Put text into lower case.
        delimiter: ``""`` makes every character a token. Other values matter with
            ``original_steps`` only, which splits there instead of at white space.
        vocab_file: ``vocab.json`` (id by word, or a list) or ``vocab.txt`` (a word in each line).
        pretrained_vocab_file: ``vocab.pkl`` or ``vocab.bin`` of older releases, read without
            executing anything. Used where ``vocab_file`` is not given.
        never_split: Strings that stay whole, in any case; the special tokens where it is ``None``.
        unk_token: Stands for what the vocabulary lacks.
        eos_token: Ends a line, and a text.
        additional_special_tokens: Tokens that are never split.
        language: The language whose rules Moses applies.
        original_steps: Take text as the original release does, which expects it tokenised: words
            with white space (or ``delimiter``) between them. The WikiText files hold such text,
            ``1 @,@ 000``, which Moses tears. Off by default; saved with the tokenizer.
        **kwargs: See `PreTrainedTokenizerBase`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = VOCAB_FILES_NAMES
    model_input_names = ["input_ids"]  # noqa: RUF012
    call_options: ClassVar[tuple[str, ...]] = ("add_eos", "add_double_eos")

    def __init__(
        self,
        special: Sequence[str] | None = None,
        min_freq: int = 0,
        max_size: int | None = None,
        lower_case: bool = False,
        delimiter: str | None = None,
        vocab_file: str | os.PathLike[str] | None = None,
        pretrained_vocab_file: str | os.PathLike[str] | None = None,
        never_split: Iterable[str] | None = None,
        unk_token: Any = "<unk>",
        eos_token: Any = "<eos>",
        additional_special_tokens: Sequence[Any] = ("<formula>",),
        language: str = "en",
        original_steps: bool = False,
        **kwargs: Any,
    ):
        check_options(special, min_freq, max_size, delimiter, never_split, language)
        path = vocab_file if vocab_file is not None else pretrained_vocab_file
        words, given = ([], {}) if path is None else read_words(path)
        self.vocab_file = None if path is None else os.fspath(path)
        self.vocabulary = WordVocabulary(words)
        self.special: list[str] = list(special or given.get("special", ()))
        self.min_freq: int = min_freq or given.get("min_freq", 0)
        self.max_size: int | None = given.get("max_size") if max_size is None else max_size
        self.lower_case: bool = bool(lower_case or given.get("lower_case", False))
        self.delimiter: str | None = given.get("delimiter") if delimiter is None else delimiter
        self.language, self.original_steps = language, bool(original_steps)
        for name in VOCAB_FILES_NAMES:
            kwargs.pop(name, None)
        super().__init__(
            unk_token=unk_token,
            eos_token=eos_token,
            additional_special_tokens=additional_special_tokens,
            **kwargs,
        )
        chosen = self.all_special_tokens if never_split is None else never_split
        self.never_split: list[str] = list(chosen)
        self._place_added_tokens()

    # -- files --------------------------------------------------------------------------------

    @classmethod
    def _argument_of_single_file(cls, path: Path) -> str:
        return "pretrained_vocab_file" if path.suffix in OLD_SUFFIXES else "vocab_file"

    @classmethod
    def _vocabulary_files(cls, locator: Locator) -> dict[str, str | None]:
        for filename in VOCAB_FILES_NAMES.values():
            path = locator.find(filename)
            if path is not None:
                # None for the other: a config of transformers has a path of where it was saved.
                found: dict[str, str | None] = {"vocab_file": None, "pretrained_vocab_file": None}
                return {**found, cls._argument_of_single_file(path): str(path)}
        names = ", ".join(VOCAB_FILES_NAMES.values())
        raise CheckpointError(f"{locator.name_or_path} has none of {names}, of which one is read")

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write ``vocab.json``, and ``vocab.txt``, which transformers reads.

        A vocabulary with white space in it (of characters, say) is not written as text.

        Args:
            save_directory: The folder; it is created where it is missing.
            filename_prefix: Put before the file names, with a hyphen.

        Returns:
            The paths written.
        """
        folder = prepare_folder(save_directory)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path, text = (folder / f"{prefix}{name}" for name in ("vocab.json", "vocab.txt"))
        write_json(path, self.vocabulary.ids)
        written = write_text(text, self.vocabulary.words)
        return (str(path), str(text)) if written else (str(path),)

    def _settings_to_save(self) -> dict[str, Any]:
        settings = super()._settings_to_save()
        for name in ("special", "min_freq", "max_size", "lower_case", "delimiter", "language"):
            settings[name] = getattr(self, name)
        settings["never_split"] = self.never_split
        if self.original_steps:
            settings["original_steps"] = True
        return settings

    # -- the vocabulary -----------------------------------------------------------------------

    @property
    def idx2sym(self) -> list[str]:
        """The words in the order of their ids."""
        return self.vocabulary.words

    @property
    def sym2idx(self) -> dict[str, int]:
        """Id by word."""
        return self.vocabulary.ids

    @property
    def counter(self) -> Counter[str]:
        """How often each word was counted."""
        return self.vocabulary.counts

    @property
    def do_lower_case(self) -> bool:
        """The same as `lower_case`."""
        return self.lower_case

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.vocabulary.words)

    def get_vocab(self) -> dict[str, int]:
        """Return the whole vocabulary, added tokens included, as token to id."""
        return {**self.vocabulary.ids, **self.added_tokens_encoder}

    def _known_id(self, token: str) -> int | None:
        return self.vocabulary.ids.get(token)

    def _convert_token_to_id(self, token: str) -> int:
        number = self.vocabulary.ids.get(token)
        return self._id_of_unknown(token) if number is None else number

    def _id_of_unknown(self, token: str) -> int:
        for name in (self.unk_token, *_OTHER_UNKNOWN):
            if name is not None and name in self.vocabulary.ids:
                return self.vocabulary.ids[name]
        raise XlmfamError(
            f"the vocabulary lacks {token!r}, and has no {self.unk_token!r} to stand for it; a "
            "vocabulary that is built has one if special or the text has"
        )

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise XlmfamError(f"the id {index} is outside the vocabulary, 0 to {len(self) - 1}")
        return self.vocabulary.words[index]

    def _place_added_tokens(self) -> None:
        """Give added tokens their ids in the vocabulary, and behind its end where it has none."""
        tokens = list(self.added_tokens_decoder.values())
        known = self.vocabulary.ids
        ids = self._added.ids
        if all(known.get(name, max(ids[name], self.vocab_size)) == ids[name] for name in ids):
            return
        self._added = AddedVocabulary()
        self.add_tokens(tokens)

    def add_symbol(self, sym: str) -> None:
        """Put a word at the end of the vocabulary, if it is a new one."""
        self.vocabulary.add(sym)
        self._place_added_tokens()

    def add_special(self, sym: str) -> None:
        """Put a special word at the end of the vocabulary, if it is a new one.

        It is not looked for in texts; `add_special_tokens` is for that.
        """
        self.add_symbol(sym)

    def move_added_token(self, token: str, target_idx: int) -> None:
        """Move an added token into the vocabulary, as for an embedding made larger in the middle.

        Args:
            token: The token.
            target_idx: The id that it gets; words from there on get the next one.
        """
        if token not in self._added.ids or token in self.vocabulary.ids:
            raise XlmfamError(f"token is {token!r}; it may be an added token")
        if not 0 <= target_idx <= self.vocab_size:
            raise XlmfamError(f"target_idx is {target_idx}; it may be 0 to {self.vocab_size}")
        self.vocabulary.insert(token, target_idx)
        self._place_added_tokens()

    def count_sents(self, sents: Iterable[Sequence[str]], verbose: bool = False) -> None:
        """Count the words of sentences.

        Args:
            sents: Lists of words.
            verbose: Show how far it is, on a terminal.
        """
        for words in _shown(sents, verbose):
            self.vocabulary.counts.update(words)

    def count_file(
        self, path: str | os.PathLike[str], verbose: bool = False, add_eos: bool = False
    ) -> list[list[str]]:
        """Count the words of a text file.

        Args:
            path: The file.
            verbose: Show how far it is, on a terminal.
            add_eos: Count ``eos_token`` at the end of each line.

        Returns:
            The words of each line.
        """
        sentences = list(self.lines_of_tokens(path, verbose=verbose, add_eos=add_eos))
        self.count_sents(sentences)
        return sentences

    def build_vocab(self) -> None:
        """Make the vocabulary: ``special``, then what was counted, the most frequent first.

        Special tokens that it lacks come behind its end. A vocabulary read from a file stays.
        """
        if self.vocab_file is not None:
            logger.info("the vocabulary of %s stays as it is", self.vocab_file)
            return
        self.vocabulary.build(self.special, self.min_freq, self.max_size)
        self._place_added_tokens()

    # -- texts to tokens ----------------------------------------------------------------------

    def moses_punct_norm(self, text: str) -> str:
        """Return a text with the quotes, dashes and spaces that Moses prefers."""
        return normalize_punctuation(text, self.language)

    def moses_tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return hyphen_words(self.language).split_but_for(text, self.never_split)

    def moses_pipeline(self, text: str) -> list[str]:
        """Return the tokens of a text: both of the above, and numbers in parts."""
        return split_text(text, self.language, self.never_split)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Put a text into lower case, but for special tokens, before words are looked for.

        Args:
            text: The text.
            is_split_into_words: It is one word of a list of them.
            **kwargs: Passed through.
        """
        if self.lower_case:
            parts = self._added.split(text)
            text = "".join([part if is_token else lower_each(part) for part, is_token in parts])
        return super().prepare_for_tokenization(text, is_split_into_words, **kwargs)

    def _tokenize(
        self,
        text: str,
        add_eos: bool = False,
        add_double_eos: bool = False,
        **kwargs: Any,  # noqa: ARG002
    ) -> list[str]:
        text = text.strip()
        text = text.lower() if self.lower_case else text
        if self.delimiter == "":
            tokens = list(text)
        elif self.original_steps:
            tokens = text.split(self.delimiter)
        else:
            tokens = self.moses_pipeline(text)
        before, after = self._ends(add_eos, add_double_eos)
        return [*before, *tokens, *after]

    def _ends(self, add_eos: bool, add_double_eos: bool) -> tuple[list[str], list[str]]:
        """Return the tokens that stand before and behind a text."""
        if add_double_eos:
            return [SENTENCE_END], [SENTENCE_END]
        if not add_eos:
            return [], []
        if self.eos_token is None:
            raise XlmfamError("add_eos is True, and eos_token is None; it may be set to a token")
        return [], [self.eos_token]

    def _take_ends(self, kwargs: dict[str, Any]) -> tuple[list[str], list[str], dict[str, Any]]:
        """Return the ends, which are those of a whole text, and the other arguments of its parts.

        Special tokens part a text, and so does a caller who gives its words.
        """
        given = [bool(kwargs.get(name)) for name in self.call_options]
        inner = {name: value for name, value in kwargs.items() if name not in self.call_options}
        return *self._ends(*given), inner

    def _tokens(self, text: str, kwargs: dict[str, Any]) -> list[str]:
        before, after, inner = self._take_ends(kwargs)
        return [*before, *super()._tokens(text, inner), *after]

    def _ids_of(self, text: Any, options: CallOptions, kwargs: dict[str, Any]) -> list[int]:
        if isinstance(text, str):
            return self._numbers(self._tokens(text, kwargs))
        before, after, inner = self._take_ends(kwargs)
        ids = super()._ids_of(text, options, inner)
        return [*self._numbers(before), *ids, *self._numbers(after)]

    def _numbers(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of tokens: `convert_tokens_to_ids` without a call for each."""
        own, known = self._added.ids, self.vocabulary.ids
        return [
            own[token]
            if token in own
            else known[token]
            if token in known
            else self._id_of_unknown(token)
            for token in tokens
        ]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text that tokens come from, as far as they tell."""
        return join_tokens(tokens, self.language)

    # -- files and sentences to ids -----------------------------------------------------------

    def lines_of_tokens(
        self,
        path: str | os.PathLike[str],
        verbose: bool = False,
        add_eos: bool = False,
        add_double_eos: bool = False,
    ) -> Iterator[list[str]]:
        """Yield the tokens of each line of a text file.

        Args:
            path: The file.
            verbose: Show how far it is, on a terminal.
            add_eos: Put ``eos_token`` behind each line.
            add_double_eos: Put ``<S>`` at both ends of each line.
        """
        kwargs = {"add_eos": add_eos, "add_double_eos": add_double_eos}
        try:
            with open(path, encoding="utf-8") as lines:
                for line in _shown(lines, verbose):
                    yield self._tokens(line, kwargs)
        except (OSError, UnicodeDecodeError) as error:
            raise XlmfamError(f"{path} cannot be read as text: {error}") from error

    def encode_file(
        self,
        path: str | os.PathLike[str],
        ordered: bool = False,
        verbose: bool = False,
        add_eos: bool = True,
        add_double_eos: bool = False,
    ) -> Any:
        """Return the ids of a text file.

        Args:
            path: The file.
            ordered: Return one array of the whole text, not one for each line.
            verbose: Show how far it is, on a terminal.
            add_eos: Put ``eos_token`` behind each line.
            add_double_eos: Put ``<S>`` at both ends of each line.

        Returns:
            An int64 array ``(tokens,)``, or a list of such arrays, one for each line.
        """
        return self.encode_sents(
            self.lines_of_tokens(path, verbose, add_eos, add_double_eos), ordered
        )

    def encode_sents(
        self, sents: Iterable[Sequence[str]], ordered: bool = False, verbose: bool = False
    ) -> Any:
        """Return the ids of sentences.

        Args:
            sents: Lists of tokens.
            ordered: Return one array of all, not one for each.
            verbose: Show how far it is, on a terminal.

        Returns:
            As `encode_file`.
        """
        import numpy as np

        if not ordered:
            return [self.convert_to_tensor(words) for words in _shown(sents, verbose)]
        ids = array("q")  # 8 bytes for each token of a long text
        for words in _shown(sents, verbose):
            ids.extend(self._numbers(words))
        return np.frombuffer(ids, np.int64) if ids else np.zeros(0, np.int64)

    def convert_to_tensor(self, symbols: Sequence[str]) -> np.ndarray:
        """Return the ids of tokens as an int64 array ``(tokens,)``."""
        import numpy as np

        return np.array(self._numbers(symbols), np.int64)


def _shown(items: Iterable[Any], verbose: bool) -> Iterator[Any]:
    return progress(items, "lines", enabled=None if verbose else False)
