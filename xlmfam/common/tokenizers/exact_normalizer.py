"""Normalising text exactly as sentencepiece does, with offsets kept.

The ``tokenizers`` library applies the same table of replacements grapheme by grapheme and takes
the shortest match: accents get lost, and Hangul letters and half-width kana stay apart. It
also knows no literal U+2581 in a text. `looks_different` tells the texts where that may matter,
which are few; for these `ExactNormalizer` does in Python what the library would do faster.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

from tokenizers import NormalizedString

from .sentencepiece_model import SPACE, CharsMap

# Hangul letters, alone and half-width; half-width voicing marks; regional indicators.
_JOINING = "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\ud7b0-\ud7ff\uff9e-\uffdc"
# Thai and Lao vowels that belong to the letter before them, and are no marks to Unicode.
_VOWELS = "\u0e33\u0eb3"
_FLAGS = "\U0001f1e6-\U0001f1ff"
# What becomes "<", and then could look like a special token that the user did not write.
_LESS_THAN = "\ufe64\uff1c"
# Normalising leaves everything else as it is, or makes spaces of it.
_CHANGING = re.compile(r"[^\t\n\r -~]")


@cache
def _pattern() -> re.Pattern[str]:
    """Match any character that could be part of a grapheme of several, and the odd ones."""
    marks = "".join(
        re.escape(chr(code))
        for code in range(0x300, sys.maxunicode + 1)
        if unicodedata.category(chr(code))[0] == "M"
        or unicodedata.category(chr(code)) == "Cf"
        or 0x1F3FB <= code <= 0x1F3FF
    )
    return re.compile(f"[{SPACE}{_VOWELS}{_LESS_THAN}{_JOINING}{_FLAGS}{marks}]")


def looks_different(text: str) -> bool:
    """Say whether the library might normalise ``text`` otherwise than sentencepiece."""
    return not text.isascii() and _pattern().search(text) is not None


def becomes_another(text: str, tokens: Iterable[str], normalizer: Any) -> bool:
    """Say whether ``text`` has other special tokens when it is normalised than as it came.

    Args:
        text: The text.
        tokens: The special tokens; they begin with ``<``.
        normalizer: A normaliser of the ``tokenizers`` library.
    """
    if "<" not in text or normalizer is None or not _CHANGING.search(text):
        return False
    normal = normalizer.normalize_str(text)
    return any(text.count(token) != normal.count(token) for token in tokens)


class ExactNormalizer:
    """A normaliser for ``Normalizer.custom``.

    Args:
        charsmap: The table of the model, ``None`` for none.
        remove_extra_whitespaces: Space at both ends goes, and double space becomes single.
        add_dummy_prefix: A space stands before the text.
    """

    def __init__(
        self,
        charsmap: CharsMap | None,
        remove_extra_whitespaces: bool = True,
        add_dummy_prefix: bool = True,
    ):
        self.charsmap = charsmap
        self.remove_extra_whitespaces = remove_extra_whitespaces
        self.add_dummy_prefix = add_dummy_prefix

    def edits(self, text: str) -> list[tuple[int, int, str]]:
        """Return what the table replaces in ``text``: start, end and new text, in order."""
        found: list[tuple[int, int, str]] = []
        if self.charsmap is None:
            return found
        at = 0
        while at < len(text):
            alone, more = self.charsmap.starts(text[at])
            match = self.charsmap.longest(text, at) if more else None
            if match is not None:
                found.append((at, *match))
                at = match[0]
                continue
            if alone is not None:
                found.append((at, at + 1, alone))
            at += 1
        return found

    def normalize(self, normalized: NormalizedString) -> None:
        """Normalise in place; the library calls this."""
        rewrite(normalized, self.edits(normalized.normalized))
        if self.remove_extra_whitespaces:
            rewrite(normalized, self._extra_spaces(normalized.normalized))
        text = normalized.normalized
        if text.startswith(SPACE) and self.add_dummy_prefix:
            # The library adds no prefix before what looks like one already.
            normalized.prepend(SPACE)

    @staticmethod
    def _extra_spaces(text: str) -> list[tuple[int, int, str]]:
        # Space at the ends is left to the pre-tokeniser, as it is with the library's normaliser.
        # A literal U+2581 counts as space at the end of a text, and nowhere else.
        end = len(text.rstrip(f" {SPACE}"))
        if SPACE not in text[end:]:
            end = len(text)
        found = [(m.start(), m.end() - 1, "") for m in re.finditer(" {2,}", text[:end])]
        return [*found, (end, len(text), "")] if end < len(text) else found


def rewrite(normalized: NormalizedString, edits: list[tuple[int, int, str]]) -> None:
    """Replace ranges of ``normalized``, so that offsets go on pointing into the original text.

    Args:
        normalized: Changed in place.
        edits: Start, end and new text of each range; in order, without overlap.
    """
    if not edits:
        return
    text = normalized.normalized
    # The library can drop characters, map each to one other, and replace a string everywhere.
    # A range first shrinks to one character; then that becomes the new text, by way of a
    # character of its own that the text does not have where the new text is longer.
    dropped: set[int] = set()
    mapped: dict[int, str] = {}
    spare = _spare_characters(text)
    long: dict[str, str] = {}
    for start, end, new in edits:
        dropped.update(range(start + 1 if new else start, end))
        if len(new) == 1:
            mapped[start] = new
        elif new:
            mapped[start] = long.get(new) or long.setdefault(new, next(spare))
    if dropped:
        keep = iter(number not in dropped for number in range(len(text)))
        normalized.filter(lambda _: next(keep))
    if mapped:
        order = iter([mapped.get(n) for n in range(len(text)) if n not in dropped])
        normalized.map(lambda char: next(order) or char)
    for new, stand_in in long.items():
        normalized.replace(stand_in, new)


def _spare_characters(text: str) -> Any:
    used = set(text)
    # Private use characters from the end: text has them hardly ever.
    return (chr(code) for code in range(sys.maxunicode - 2, 0xE000, -1) if chr(code) not in used)
