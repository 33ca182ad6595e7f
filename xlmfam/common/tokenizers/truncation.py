"""How sequences that are too long get shorter."""

from __future__ import annotations

import enum

from xlmfam.common.errors import XlmfamError
from xlmfam.common.logging import get_logger

logger = get_logger(__name__)


class TruncationStrategy(enum.StrEnum):
    """What ``truncation`` may be; ``True`` means ``longest_first``, ``False`` the last."""

    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    LONGEST_FIRST = "longest_first"
    DO_NOT_TRUNCATE = "do_not_truncate"

    @classmethod
    def of(cls, value: bool | str | TruncationStrategy | None) -> TruncationStrategy:
        """Return the member that an argument ``truncation=value`` means.

        Raises:
            XlmfamError: ``value`` is nothing of the kind.
        """
        if value is None or value is False:
            return cls.DO_NOT_TRUNCATE
        if value is True:
            return cls.LONGEST_FIRST
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(repr(member.value) for member in cls)
            raise XlmfamError(
                f"truncation is {value!r}; it may be True, False or one of {allowed}"
            ) from None


def check_side(name: str, side: object) -> str:
    """Return ``side`` if it is ``left`` or ``right``.

    Raises:
        XlmfamError: it is neither.
    """
    if side not in ("left", "right"):
        raise XlmfamError(f"{name} is {side!r}; it may be 'left' or 'right'")
    return str(side)


def longest_first_lengths(first: int, second: int, remove: int) -> tuple[int, int]:
    """Return both lengths after taking ``remove`` tokens, one by one, off the longer.

    Where both are as long, the second one loses the token.
    """
    excess = min(remove, abs(first - second))
    if first > second:
        first -= excess
    else:
        second -= excess
    remove -= excess
    return max(first - remove // 2, 0), max(second - (remove + 1) // 2, 0)


def _cut(ids: list[int], remove: int, stride: int, side: str) -> tuple[list[int], list[int]]:
    """Split ``ids`` into what stays and what was removed with ``stride`` tokens before it."""
    keep = len(ids) - remove
    window = min(len(ids), stride + remove)
    if side == "right":
        return ids[:keep], ids[len(ids) - window :]
    return ids[remove:], ids[:window]


def truncate_sequences(
    ids: list[int],
    pair_ids: list[int] | None = None,
    num_tokens_to_remove: int = 0,
    truncation_strategy: str | bool | TruncationStrategy = "longest_first",
    stride: int = 0,
    side: str = "right",
) -> tuple[list[int], list[int] | None, list[int]]:
    """Take ``num_tokens_to_remove`` tokens off a sequence or a pair.

    Args:
        ids: The first sequence.
        pair_ids: The second sequence.
        num_tokens_to_remove: How many tokens are too many.
        truncation_strategy: Which of the two gets shorter.
        stride: How many of the kept tokens the overflow repeats.
        side: The end that tokens are taken from.

    Returns:
        Both sequences, and the overflow. A pair truncated ``longest_first`` has no overflow,
        since it would come from two places.
    """
    strategy = TruncationStrategy.of(truncation_strategy)
    if num_tokens_to_remove <= 0 or strategy is TruncationStrategy.DO_NOT_TRUNCATE:
        return ids, pair_ids, []
    if strategy is TruncationStrategy.LONGEST_FIRST and pair_ids is not None:
        first, second = longest_first_lengths(len(ids), len(pair_ids), num_tokens_to_remove)
        ids, _ = _cut(ids, len(ids) - first, 0, side)
        pair_ids, _ = _cut(pair_ids, len(pair_ids) - second, 0, side)
        return ids, pair_ids, []
    only_second = strategy is TruncationStrategy.ONLY_SECOND
    target = pair_ids if only_second else ids
    if target is None:
        logger.error("truncation='only_second' was asked for, and there is no second sequence")
        return ids, pair_ids, []
    if len(target) < num_tokens_to_remove:
        logger.error(
            "truncation=%r cannot remove %d tokens: the sequence it names has %d. Nothing was "
            "removed; 'longest_first' takes tokens from both",
            strategy.value,
            num_tokens_to_remove,
            len(target),
        )
        return ids, pair_ids, []
    kept, overflow = _cut(target, num_tokens_to_remove, stride, side)
    return (ids, kept, overflow) if only_second else (kept, pair_ids, overflow)
