"""Words as Transformer-XL takes them: Moses with hyphens split, and numbers in parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from .xlm_moses import MosesWords, rewrite_around, rewriter
from .xlm_text import normalize_punctuation

_INSIDE_NUMBER = re.compile(r"(?<=\d)[,.](?=\d)")
_JOINTS = {",": " @,@ ", ".": " @.@ "}
# Letters, then digits: to Moses' rules what is kept looks like a word that ends in a number.
_KEPT = "THISISPROTECTED"


class HyphenWords(MosesWords):
    """Finds words as `MosesWords`, with hyphens inside words as words of their own, ``@-@``.

    Args:
        lang: The language.
    """

    def __init__(self, lang: str):
        super().__init__(lang)
        self._hyphen = rewriter([self._moses.AGGRESSIVE_HYPHEN_SPLIT])

    def _pad_others(self, text: str) -> str:
        text = super()._pad_others(text)
        return rewrite_around(text, "-", self._hyphen) if "-" in text else text

    def split_but_for(self, text: str, never_split: Sequence[str]) -> list[str]:
        """Return the words of a text; some strings stay whole, whatever case they stand in.

        Args:
            text: The text.
            never_split: The strings.
        """
        if not never_split:
            return self.split(text)
        text = self._junk.sub("", " ".join(text.split()))
        found = _finder(tuple(never_split)).findall(text)
        if not found:
            return self.split(text)
        kept = list(dict.fromkeys(found))
        stem = _unused(text)
        width = max(3, len(str(len(kept))))
        marks = {token: f"{stem}{number:0{width}}" for number, token in enumerate(kept)}
        for token in sorted(kept, key=len, reverse=True):
            text = text.replace(token, marks[token])
        words = " ".join(self.split(text))
        for token, mark in marks.items():
            words = words.replace(mark, token)
        return words.split()


@lru_cache(maxsize=64)
def _finder(never_split: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(never_split, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)


def _unused(text: str) -> str:
    """Return a stem that the text does not hold."""
    stem = _KEPT
    while stem in text:
        stem += "X"
    return stem


@lru_cache(maxsize=64)
def hyphen_words(lang: str) -> HyphenWords:
    """Return the word finder of a language; it is made once."""
    return HyphenWords(lang)


@lru_cache(maxsize=64)
def _joiner(lang: str) -> Any:
    from sacremoses import MosesDetokenizer

    return MosesDetokenizer(lang=lang)


def tokenize_numbers(words: Iterable[str]) -> list[str]:
    """Part numbers at their commas and points: ``1,000.5`` is ``1 @,@ 000 @.@ 5``."""
    parts: list[str] = []
    for word in words:
        if "," in word or "." in word:
            parts += _INSIDE_NUMBER.sub(_joint, word).split()
        else:
            parts += word.split()
    return parts


def _joint(match: re.Match[str]) -> str:
    return _JOINTS[match.group()]


def detokenize_numbers(text: str) -> str:
    """Undo `tokenize_numbers` in a text."""
    for mark, joint in _JOINTS.items():
        text = text.replace(joint, mark)
    return text


def split_text(text: str, lang: str, never_split: Sequence[str]) -> list[str]:
    """Return the tokens of a text.

    Args:
        text: The text.
        lang: The language whose rules Moses applies.
        never_split: Strings that stay whole.
    """
    text = normalize_punctuation(text, lang)
    return tokenize_numbers(hyphen_words(lang).split_but_for(text, never_split))


def join_tokens(tokens: Iterable[str], lang: str) -> str:
    """Return the text that tokens come from, as far as they tell."""
    return detokenize_numbers(_joiner(lang).detokenize(list(tokens))).strip()
