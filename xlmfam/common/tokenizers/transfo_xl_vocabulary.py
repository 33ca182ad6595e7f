"""Transformer-XL's vocabulary: words by their counts, and the files it is read from."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.pickles import Placeholder, read_pickle

from .files import write_atomically

OLD_SUFFIXES = (".pkl", ".pickle", ".bin", ".pt", ".pth")
# Settings of an old file that say how its vocabulary came to be.
_OLD_SETTINGS: dict[str, tuple[type, ...]] = {
    "lower_case": (bool,),
    "delimiter": (str,),
    "min_freq": (int,),
    "max_size": (int,),
    "special": (list, tuple),
}


class WordVocabulary:
    """Words by number, numbers by word, and how often words were counted.

    Args:
        words: In the order of ids.

    Attributes:
        words: In the order of ids.
        ids: Id by word.
        counts: How often each word was counted, whether it is in the vocabulary or not.
    """

    def __init__(self, words: Iterable[str] = ()):
        self.words: list[str] = list(words)
        self.ids: dict[str, int] = {word: number for number, word in enumerate(self.words)}
        self.counts: Counter[str] = Counter()

    def add(self, word: str) -> None:
        """Put a word at the end, if it is a new one."""
        if word not in self.ids:
            self.ids[word] = len(self.words)
            self.words.append(word)

    def insert(self, word: str, place: int) -> None:
        """Put a word at a place; the words from there on move up by one."""
        self.words.insert(place, word)
        self.ids = {word: number for number, word in enumerate(self.words)}

    def build(self, special: Sequence[str], min_freq: int, max_size: int | None) -> None:
        """Make the vocabulary of what was counted.

        Args:
            special: The first words, counted or not.
            min_freq: Leave out words counted less often.
            max_size: Take the most frequent so many, special ones that were counted included.
        """
        words = dict.fromkeys(special)
        # Equal counts stay in the order of the text.
        for word, count in self.counts.most_common(max_size):
            if count < min_freq:
                break
            words.setdefault(word)
        self.words = list(words)
        self.ids = {word: number for number, word in enumerate(self.words)}


def read_words(path: str | os.PathLike[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words that a vocabulary file has, and settings that it gives.

    Args:
        path: ``.json``: id by word, or a list of words. ``.pkl``, ``.bin``: an old file, of which
            nothing is executed. Anything else: the first word of each line.

    Raises:
        CheckpointError: The file is missing or damaged, or holds no vocabulary.
    """
    path = Path(path)
    if path.suffix in OLD_SUFFIXES:
        return _words_of_old_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as text: {error}") from error
    if path.suffix == ".json":
        return _words_of_json(path, text), {}
    # Words parted by other space than a newline are one line, as counts stand behind words.
    lines = (line.split() for line in text.split("\n"))
    words = list(dict.fromkeys(line[0] for line in lines if line))
    if not words:
        raise CheckpointError(f"{path} has no words; a vocabulary has one in each line")
    return words, {}


def _words_of_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(content, dict):
        return _in_order(content, path)
    return _checked(content, path)


def _in_order(ids: Mapping[Any, Any], path: Path) -> list[str]:
    """Return words in the order of their ids."""
    if any(type(number) is not int for number in ids.values()):
        raise CheckpointError(f"{path} has words whose id is no number")
    words = sorted(ids, key=lambda word: ids[word])
    if [ids[word] for word in words] != list(range(len(words))):
        raise CheckpointError(f"{path} has {len(words)} words, and their ids are not 0 to that")
    return _checked(words, path)


def _checked(words: Any, path: Path) -> list[str]:
    if not isinstance(words, list) or any(type(word) is not str for word in words):
        raise CheckpointError(f"{path} holds no vocabulary: a list of words, or ids by word")
    if len(set(words)) < len(words):
        raise CheckpointError(f"{path} has {len(words) - len(set(words))} words more than once")
    try:
        "".join(words).encode("utf-8")
    except UnicodeEncodeError as error:  # halves of characters, which no file could hold
        raise CheckpointError(f"{path} has words that are no text") from error
    return words


def _words_of_old_file(path: Path) -> tuple[list[str], dict[str, Any]]:
    content = _vocabulary_in(read_pickle(path))
    if content is None:
        raise CheckpointError(f"{path} holds no vocabulary (idx2sym or sym2idx)")
    if isinstance(content.get("idx2sym"), list):
        words = _checked(content["idx2sym"], path)
    else:
        ids = content.get("sym2idx")
        words = _in_order(ids if isinstance(ids, dict) else _of_pairs(ids, path), path)
    settings = {
        name: content[name]
        for name, types in _OLD_SETTINGS.items()
        if isinstance(content.get(name), types)
    }
    if not all(isinstance(word, str) for word in settings.get("special", ())):
        del settings["special"]
    return words, settings


def _of_pairs(pairs: Any, path: Path) -> dict[str, Any]:
    """Return a dict of what Python 2 writes for an ordered one."""
    pairs = pairs if isinstance(pairs, list) else [None]
    if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise CheckpointError(f"{path} holds no vocabulary (idx2sym or sym2idx)")
    if any(not isinstance(pair[0], str) for pair in pairs):
        raise CheckpointError(f"{path} has words that are no strings")
    return {pair[0]: pair[1] for pair in pairs}


def _vocabulary_in(value: Any) -> dict[str, Any] | None:
    """Return the attributes of a vocabulary: the content itself, or inside an object, a corpus."""
    for _ in range(4):
        if isinstance(value, Placeholder):
            value = value.state
        if not isinstance(value, dict):
            return None
        if "idx2sym" in value or "sym2idx" in value:
            return value
        value = value.get("vocab")
    return None


def write_text(path: Path, words: Sequence[str]) -> bool:
    """Write ``vocab.txt``, a word in each line, and return whether that can be read back."""
    if any(word.split() != [word] for word in words):
        path.unlink(missing_ok=True)
        return False
    write_atomically(path, "".join(f"{word}\n" for word in words).encode("utf-8"))
    return True


def check_options(
    special: Any, min_freq: Any, max_size: Any, delimiter: Any, never_split: Any, language: Any
) -> None:
    """Check the options of a tokenizer.

    Raises:
        XlmfamError: One of them is not what it may be.
    """
    for name, value in (("special", special), ("never_split", never_split)):
        is_list = value is None or isinstance(value, (list, tuple, set, frozenset))
        if not is_list or not all(isinstance(word, str) and word for word in value or ()):
            raise XlmfamError(f"{name} is {value!r}; it may be a list of strings")
    if type(min_freq) is not int or min_freq < 0:
        raise XlmfamError(f"min_freq is {min_freq!r}; it may be a number from 0")
    if max_size is not None and (type(max_size) is not int or max_size < 0):
        raise XlmfamError(f"max_size is {max_size!r}; it may be None or a number from 0")
    if delimiter is not None and not isinstance(delimiter, str):
        raise XlmfamError(f"delimiter is {delimiter!r}; it may be None or a string")
    if not isinstance(language, str):
        raise XlmfamError(f"language is {language!r}; it may be a code such as 'en'")
