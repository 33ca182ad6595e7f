"""Words as Moses finds them: the rules and lists of sacremoses, applied only where they can act.

sacremoses runs every rule over the whole text and, at each full stop, builds sets of all letters
of Unicode. The functions here give the same words (a test compares them on arbitrary text) in a
small part of the time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any

_DIGITS = frozenset("0123456789")
# What stands for several dots in a row while single ones are looked at; texts may hold it too.
_DOTS = "DOTMULTI"
_FEW = 24


@cache
def _characters(content: str) -> frozenset[str]:
    return frozenset(content)


def rewrite_around(text: str, mark: str, rewrite: Callable[[str], str]) -> str:
    """Rewrite each place that holds a mark, with the one character that stands on either side.

    Marks so near to each other that they share a neighbour are rewritten together. So rules that
    look no further than one character give what they would give on the whole text.

    Args:
        text: The text.
        mark: One character.
        rewrite: Gives what a place becomes.
    """
    parts: list[str] = []
    done = 0
    start = text.find(mark)
    while start >= 0:
        end = start + 1
        while (near := text.find(mark, end, end + 2)) >= 0:
            end = near + 1
        # Where the text begins with the mark nothing stands before it.
        before = start - 1 if start else 0
        parts += (text[done:before], rewrite(text[before : end + 1]))
        done = end + 1
        start = text.find(mark, done)
    return "".join(parts) + text[done:]


def rewriter(rules: Iterable[tuple[re.Pattern[str], str]]) -> Callable[[str], str]:
    """Return what applies rules to a short text, one after the other, and remembers."""
    rules = list(rules)

    @lru_cache(maxsize=4096)
    def rewrite(place: str) -> str:
        for expression, replacement in rules:
            place = expression.sub(replacement, place)
        return place

    return rewrite


class MosesWords:
    """Finds the words of texts in one language, without escaping anything.

    Args:
        lang: The language; one that Moses has no rules for is treated as it treats such.
    """

    def __init__(self, lang: str):
        from sacremoses import MosesTokenizer

        source: Any = MosesTokenizer(lang=lang)
        self._moses = source
        self._junk = source.ASCII_JUNK[0]
        self._other, self._padded = source.PAD_NOT_ISALNUM
        self._is_other: dict[str, bool] = {}
        commas = (source.COMMA_SEPARATE_1, source.COMMA_SEPARATE_2, source.COMMA_SEPARATE_3)
        self._comma = rewriter(commas)
        self._apostrophe = rewriter(_apostrophe_rules(source, lang))
        self._letters = _characters(source.IsAlpha)
        self._lower = _characters(source.IsLower)
        self._before_number = frozenset(source.NUMERIC_ONLY_PREFIXES)
        self._abbreviations = frozenset(source.NONBREAKING_PREFIXES) - self._before_number

    def split(self, text: str) -> list[str]:
        """Return the words of a text; punctuation marks are words of their own."""
        text = self._junk.sub("", " ".join(text.split())).strip()
        text = self._pad_others(text)
        if ".." in text:
            text = self._moses.replace_multidots(text)
        if "," in text:
            text = rewrite_around(text, ",", self._comma)
        if "'" in text:
            text = rewrite_around(text, "'", self._apostrophe)
        words = text.split()
        if "." in text:
            words = self._part_stops(words)
        if _DOTS in text:
            words = self._moses.restore_multidots(" ".join(words)).split()
        return words

    def _pad_others(self, text: str) -> str:
        """Put spaces around what is neither letter, digit nor one of a few marks."""
        kinds = self._is_other
        others = []
        for character in set(text):
            if character not in kinds:
                kinds[character] = self._other.match(character) is not None
            if kinds[character]:
                others.append(character)
        # One after the other is quicker than the expression, as long as they are few.
        if len(others) > _FEW:
            return self._other.sub(self._padded, text)
        for character in others:
            text = text.replace(character, f" {character} ")
        return text

    def _part_stops(self, words: list[str]) -> list[str]:
        """Part full stops from words, but for abbreviations and inside sentences."""
        parted: list[str] = []
        last = len(words) - 1
        for place, word in enumerate(words):
            if word[-1] != "." or len(word) == 1:
                parted.append(word)
                continue
            following = words[place + 1][0] if place < last else ""
            stays = self._keeps_stop(word[:-1], following)
            parted += (word,) if stays else (word[:-1], ".")
        # An apostrophe that closes the text parts from the stop before it.
        if parted and parted[-1].endswith(".'"):
            head = parted.pop()[:-2]
            parted += (head, ".", "'") if head else (".", "'")
        return parted

    def _keeps_stop(self, word: str, following: str) -> bool:
        """Tell whether the stop after ``word`` is no end of a sentence.

        Args:
            word: The word, without the stop.
            following: The first character of the next word, empty at the end.
        """
        if word in self._abbreviations or (following and following in self._lower):
            return True
        if "." in word and not self._letters.isdisjoint(word):
            return True
        return word in self._before_number and following in _DIGITS


def _apostrophe_rules(source: Any, lang: str) -> list[tuple[re.Pattern[str], str]]:
    if lang == "en":
        return source.ENGLISH_SPECIFIC_APOSTROPHE
    if lang in ("fr", "it"):
        return source.FR_IT_SPECIFIC_APOSTROPHE
    return [source.NON_SPECIFIC_APOSTROPHE]


@lru_cache(maxsize=256)
def moses_words(lang: str) -> MosesWords:
    """Return the word finder of a language; it is made once."""
    return MosesWords(lang)
