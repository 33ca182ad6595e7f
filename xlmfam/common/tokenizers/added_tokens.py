"""Added tokens of slow tokenizers: their ids, and finding them in text."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

from tokenizers import AddedToken

# Letters to Unicode though their category says symbol: enclosed Latin ones.
_ENCLOSED = "\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189"


@cache
def _word_character() -> str:
    r"""Return a character class of what words are made of, as the ``tokenizers`` library has it.

    Python's ``\w`` lacks the marks, which are inside the words of many scripts, and has fractions
    and circled numbers.
    """
    ranges: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category[0] in "LM" or category in ("Nd", "Nl", "Pc"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    spans = "".join(f"{re.escape(chr(start))}-{re.escape(chr(end))}" for start, end in ranges)
    return f"[{spans}{_ENCLOSED}\u200c\u200d]"


def _branch(token: AddedToken) -> str:
    content = re.escape(token.content)
    if not token.single_word:
        return content
    return f"(?<!{_word_character()}){content}(?!{_word_character()})"


class AddedVocabulary:
    """Tokens that are found in text before anything else splits it.

    They are the special tokens, which mostly have an id in the vocabulary already, and what a
    user adds to it.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, AddedToken] = {}
        self.ids: dict[str, int] = {}
        self._pattern: re.Pattern[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pattern": None}

    def put(self, number: int, token: AddedToken) -> None:
        """Give ``token`` the id ``number``; how it is matched is replaced where it is known."""
        self.by_id[number] = token
        self.ids[token.content] = number
        self._pattern = None

    def _compiled(self) -> re.Pattern[str]:
        if self._pattern is None:
            # Longest first: an alternation takes the first branch that fits.
            tokens = sorted(self.by_id.values(), key=lambda token: -len(token.content))
            branches = [_branch(token) for token in tokens if token.content]
            self._pattern = re.compile("|".join(branches) if branches else r"(?!)")
        return self._pattern

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the parts of ``text``, each with whether it is an added token.

        White space next to a token goes with it where the token says so (``lstrip``, ``rstrip``).
        """
        start = 0
        strip_next = False
        for match in self._compiled().finditer(text):
            token = self.by_id[self.ids[match.group()]]
            before = text[start : match.start()]
            before = before.lstrip() if strip_next else before
            before = before.rstrip() if token.lstrip else before
            if before:
                yield before, False
            yield token.content, True
            start = match.end()
            strip_next = token.rstrip
        rest = text[start:]
        rest = rest.lstrip() if strip_next else rest
        if rest:
            yield rest, False
