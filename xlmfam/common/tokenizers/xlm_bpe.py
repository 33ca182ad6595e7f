"""Byte pair encoding as XLM has it: the end of a word is marked, merges are ranked."""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from xlmfam.common.errors import CheckpointError

END = "</w>"

# Above this many symbols, looking through all pairs for each merge takes longer than a heap.
_LONG = 48
# Words that take this much room are not likely to come again.
_LONGEST_CACHED = 64
_CACHE_SIZE = 1 << 17

Pair = tuple[str, str]

# The rank of a pair that has none: above all others.
_NONE = 1 << 62


def read_merges(path: str | os.PathLike[str]) -> dict[Pair, int]:
    """Return the rank of each pair that a ``merges.txt`` or ``codes`` file lists.

    A line has the two symbols, and in the original files a count as well.

    Raises:
        CheckpointError: the file is missing, or holds no such lines.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as text: {error}") from error
    ranks = ranks_of(text)
    if not ranks and text.strip():
        raise CheckpointError(f"{path} has no line with two symbols: it holds no merges")
    return ranks


def ranks_of(text: str) -> dict[Pair, int]:
    """Return the rank of each pair in the content of such a file."""
    lines = [line.split() for line in text.split("\n")]
    return {(line[0], line[1]): rank for rank, line in enumerate(lines) if len(line) > 1}


class BytePairs:
    """Splits words by ranked merges, and remembers what it found.

    Args:
        ranks: The rank of each pair; the lowest is merged first.
    """

    def __init__(self, ranks: dict[Pair, int]):
        self.ranks = ranks
        self._found: dict[str, tuple[str, ...]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"ranks": self.ranks, "_found": {}}

    def split(self, word: str) -> tuple[str, ...]:
        """Return the pieces of a word; the last one ends with the mark."""
        pieces = self._found.get(word)
        if pieces is None:
            pieces = self._split(word)
            if len(word) <= _LONGEST_CACHED:
                if len(self._found) >= _CACHE_SIZE:
                    self._found.clear()
                self._found[word] = pieces
        return pieces

    def _split(self, word: str) -> tuple[str, ...]:
        symbols = [*word[:-1], word[-1] + END] if word else [END]
        merge = merge_short if len(symbols) <= _LONG else merge_long
        symbols = merge(symbols, self.ranks)
        if " " in word:
            # Only segmenters make such words. The reference joins pieces by spaces and splits them
            # there again, so that a space itself is lost and empty pieces stand around it.
            symbols = " ".join(symbols).split(" ")
        return tuple(symbols)


def merge_short(symbols: list[str], ranks: dict[Pair, int]) -> list[str]:
    """Merge the pair of lowest rank, everywhere it stands, until there is none.

    Args:
        symbols: What to merge; it is used up.
        ranks: Rank by pair.
    """
    get = ranks.get
    found = [get(pair, _NONE) for pair in itertools.pairwise(symbols)]
    while found:
        best = min(found)
        if best == _NONE:
            break
        place = found.index(best)
        first, second = symbols[place], symbols[place + 1]
        symbols[place : place + 2] = [first + second]
        del found[place]
        if best in found:
            _merge_rest(symbols, place + 1, first, second)
            found = [get(pair, _NONE) for pair in itertools.pairwise(symbols)]
            continue
        if place:
            found[place - 1] = get((symbols[place - 1], symbols[place]), _NONE)
        if place < len(found):
            found[place] = get((symbols[place], symbols[place + 1]), _NONE)
    return symbols


def _merge_rest(symbols: list[str], place: int, first: str, second: str) -> None:
    """Merge further occurrences of a pair, from the left, none of them overlapping."""
    while place < len(symbols) - 1:
        if symbols[place] == first and symbols[place + 1] == second:
            symbols[place : place + 2] = [first + second]
        place += 1


def merge_long(symbols: list[str], ranks: dict[Pair, int]) -> list[str]:
    """Do what `merge_short` does, in a time that grows little faster than the word.

    Args:
        symbols: What to merge; it is used up.
        ranks: Rank by pair.
    """
    alive: list[str | None] = [*symbols]
    count = len(symbols)
    after = [*range(1, count + 1)]
    before = [*range(-1, count - 1)]
    heap = [
        (rank, place)
        for place in range(count - 1)
        if (rank := ranks.get((symbols[place], symbols[place + 1]))) is not None
    ]
    heapq.heapify(heap)
    while heap:
        best = heap[0][0]
        changed: list[int] = []
        for place in _same_rank(heap):
            follower = after[place]
            left = alive[place]
            right = alive[follower] if follower < count else None
            # An earlier merge may have taken either side.
            if left is None or right is None or ranks.get((left, right)) != best:
                continue
            alive[place], alive[follower] = left + right, None
            after[place] = after[follower]
            if after[place] < count:
                before[after[place]] = place
            changed.append(place)
        # Pairs are looked at anew only when all of this rank are merged, as in `merge_short`.
        for place in changed:
            for left_place in (before[place], place):
                _push(heap, alive, after, ranks, left_place)
    return [symbol for symbol in alive if symbol is not None]


def _same_rank(heap: list[tuple[int, int]]) -> Iterator[int]:
    """Take all entries of the lowest rank off the heap, from left to right."""
    best = heap[0][0]
    while heap and heap[0][0] == best:
        yield heapq.heappop(heap)[1]


def _push(
    heap: list[tuple[int, int]],
    alive: list[str | None],
    after: list[int],
    ranks: dict[Pair, int],
    place: int,
) -> None:
    """Put the pair that begins at ``place`` on the heap where it can be merged."""
    if place < 0 or alive[place] is None or after[place] >= len(alive):
        return
    left, right = alive[place], alive[after[place]]
    if left is not None and right is not None:
        rank = ranks.get((left, right))
        if rank is not None:
            heapq.heappush(heap, (rank, place))


def lines_of_merges(ranks: dict[Pair, int]) -> Iterable[str]:
    """Yield the lines of a ``merges.txt``."""
    for (first, second), _ in sorted(ranks.items(), key=lambda item: item[1]):
        yield f"{first} {second}\n"
