"""What XLM does to a text before words are found in it: punctuation, controls, accents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache

# One rule: what a text must hold for the rule to change it, the expression, the replacement.
Rule = tuple[str, re.Pattern[str], str]

# The parts of an expression: classes and groups of digits or space, escaped characters, operators,
# and characters that stand for themselves.
_PARTS = re.compile(r"\[[^\]]*\]|\\[dDsSwWgG][*+?]?|\\(?P<escaped>.)|[()+]|(?P<plain>.)", re.DOTALL)
_UNCERTAIN = frozenset("?*|{^$")
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}

# Romanian letters with marks lose them. Both the comma and the older cedilla are in use for s and
# t; other letters keep what they have.
_ROMANIAN = str.maketrans("ĂăÂâÎîȘșŞşȚțŢţ", "AaAaIiSsSsTtTt")


def _needle(expression: str) -> str:
    """Return what every match of an expression holds; empty where that is not sure."""
    certain: list[str] = []
    for match in _PARTS.finditer(expression):
        escaped, plain = match["escaped"], match["plain"]
        if plain is not None and plain in _UNCERTAIN:
            return ""
        if escaped is not None:
            certain.append(_ESCAPES.get(escaped, escaped))
        elif plain is not None:
            certain.append(plain)
    # The rarest first: beyond ASCII, then marks, then letters, and space last.
    certain.sort(key=lambda c: (c == " ", c.isascii(), c.isalnum()))
    return certain[0] if certain else ""


def _rules(substitutions: Iterable[tuple[str, str]]) -> list[Rule]:
    rules = []
    for expression, replacement in substitutions:
        needle = _needle(expression)
        if (expression, replacement) == (" +", " "):
            # That one space becomes one need not be done.
            needle, expression = "  ", "  +"
        rules.append((needle, re.compile(expression), replacement))
    return rules


def _apply(rules: list[Rule], text: str) -> str:
    # Few rules concern a given text, and to look for a character is far quicker than a rule.
    for needle, expression, replacement in rules:
        if needle in text:
            text = expression.sub(replacement, text)
    return text


@lru_cache(maxsize=256)
def _punctuation_rules(lang: str) -> list[Rule]:
    from sacremoses import MosesPunctNormalizer

    return _rules(MosesPunctNormalizer(lang=lang).substitutions)


@cache
def _unicode_rules() -> list[Rule]:
    from sacremoses import MosesPunctNormalizer

    return _rules(MosesPunctNormalizer.REPLACE_UNICODE_PUNCTUATION)


def replace_unicode_punctuation(text: str) -> str:
    """Replace full-width and ideographic punctuation by what ASCII has for it."""
    return text if text.isascii() else _apply(_unicode_rules(), text)


def normalize_punctuation(text: str, lang: str) -> str:
    """Write quotes, dashes and the space around punctuation as Moses does for a language."""
    return _apply(_punctuation_rules(lang), text).strip()


def remove_non_printing(text: str, replacement: str = "") -> str:
    """Remove what Unicode counts as control, format, private or unassigned.

    Args:
        text: The text.
        replacement: Stands in the place of each.
    """
    if text.isprintable():  # which excludes those, and some kinds of space besides
        return text
    for character in {c for c in set(text) if unicodedata.category(c)[0] == "C"}:
        text = text.replace(character, replacement)
    return text


def clean(text: str, lang: str, replacement: str = "") -> str:
    """Apply the three steps above in the order in which they change the text.

    Args:
        text: The text.
        lang: The language.
        replacement: What stands for a character that does not print.
    """
    # Moses' rules see what full-width marks have become.
    text = normalize_punctuation(replace_unicode_punctuation(text), lang)
    return remove_non_printing(text, replacement)


def strip_romanian(text: str) -> str:
    """Take the marks off Romanian letters."""
    return text if text.isascii() else text.translate(_ROMANIAN)


def lower_each(text: str) -> str:
    """Put every character into lower case by itself, so that no sigma becomes a final one."""
    return text.replace("Σ", "σ").lower()


def lower_without_accents(word: str) -> str:
    """Return a word in lower case, without its combining marks."""
    word = word.lower()
    if word.isascii():
        return word
    marks = unicodedata.normalize("NFD", word)
    return "".join([c for c in marks if unicodedata.category(c) != "Mn"]).lower()
