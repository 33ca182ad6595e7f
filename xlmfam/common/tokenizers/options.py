"""The options of one tokenizer call, checked once and handed down together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from xlmfam.common.errors import XlmfamError
from xlmfam.common.logging import get_logger

from .padding import PaddingStrategy
from .tensors import TensorType
from .truncation import TruncationStrategy

logger = get_logger(__name__)

# model_max_length of a tokenizer that has no limit; as other releases write it in their files.
NO_LIMIT = int(1e30)
# Anything above this is somebody's way of saying "no limit".
LARGE = int(1e20)


@dataclasses.dataclass(frozen=True)
class CallOptions:
    """What the arguments of a tokenizer call come to."""

    add_special_tokens: bool
    padding: PaddingStrategy
    truncation: TruncationStrategy
    max_length: int | None
    stride: int
    padding_side: str
    is_split_into_words: bool
    pad_to_multiple_of: int | None
    return_tensors: TensorType | None
    return_token_type_ids: bool
    return_attention_mask: bool
    return_overflowing_tokens: bool
    return_special_tokens_mask: bool
    return_offsets_mapping: bool
    return_length: bool
    verbose: bool

    def but(self, **changes: Any) -> CallOptions:
        """Return these options with ``changes``."""
        return dataclasses.replace(self, **changes)


def _whole_number(name: str, value: Any, least: int) -> int | None:
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = None
    if number is None or number != value or isinstance(value, bool) or number < least:
        raise XlmfamError(f"{name} is {value!r}; it may be a whole number of at least {least}")
    return number


def resolve_lengths(
    padding: Any,
    truncation: Any,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    model_max_length: int,
    has_pad_token: bool,
    warn_once: Any,
) -> tuple[PaddingStrategy, TruncationStrategy, int | None]:
    """Return the strategies and the length that they work with.

    Args:
        padding: As the caller passed it.
        truncation: As the caller passed it; ``None`` where nothing was said.
        max_length: As the caller passed it.
        pad_to_multiple_of: As the caller passed it.
        model_max_length: Stands in for a missing ``max_length``.
        has_pad_token: Whether padding is possible at all.
        warn_once: Called with a message that the user should see once.

    Raises:
        XlmfamError: the arguments contradict each other.
    """
    if max_length is not None and not padding and truncation is None:
        warn_once(
            "max_length without truncation=... truncates, longest sequence first; pass "
            "truncation=True to say so, or truncation=False to keep everything"
        )
        truncation = True
    pad, cut = PaddingStrategy.of(padding), TruncationStrategy.of(truncation)
    if max_length is None:
        limit = None if model_max_length > LARGE else model_max_length
        if pad is PaddingStrategy.MAX_LENGTH and limit is None:
            warn_once(
                "padding='max_length' without max_length, on a model with no limit: no padding"
            )
            pad = PaddingStrategy.DO_NOT_PAD
        if cut is not TruncationStrategy.DO_NOT_TRUNCATE and limit is None:
            warn_once("truncation without max_length, on a model with no limit: no truncation")
            cut = TruncationStrategy.DO_NOT_TRUNCATE
        if PaddingStrategy.MAX_LENGTH is pad or cut is not TruncationStrategy.DO_NOT_TRUNCATE:
            max_length = limit
    if pad is not PaddingStrategy.DO_NOT_PAD and not has_pad_token:
        raise XlmfamError(
            f"padding is {padding!r} and the tokenizer has no pad_token: set one, for example "
            "tokenizer.pad_token = tokenizer.eos_token, or "
            "tokenizer.add_special_tokens({'pad_token': '<pad>'})"
        )
    both = pad is not PaddingStrategy.DO_NOT_PAD and cut is not TruncationStrategy.DO_NOT_TRUNCATE
    if both and pad_to_multiple_of and max_length is not None and max_length % pad_to_multiple_of:
        raise XlmfamError(
            f"max_length={max_length} is no multiple of pad_to_multiple_of={pad_to_multiple_of}, "
            "and both truncation and padding are on: choose a max_length that is"
        )
    return pad, cut, max_length


def make_options(
    *,
    padding: Any,
    truncation: Any,
    max_length: Any,
    stride: Any,
    pad_to_multiple_of: Any,
    return_tensors: Any,
    return_token_type_ids: bool | None,
    return_attention_mask: bool | None,
    model_max_length: int,
    model_input_names: list[str],
    has_pad_token: bool,
    warn_once: Any,
    **flags: Any,
) -> CallOptions:
    """Check the arguments of a call and fill in what they leave open."""
    max_length = _whole_number("max_length", max_length, 0)
    multiple = _whole_number("pad_to_multiple_of", pad_to_multiple_of, 1)
    pad, cut, max_length = resolve_lengths(
        padding, truncation, max_length, multiple, model_max_length, has_pad_token, warn_once
    )
    if return_token_type_ids is None:
        return_token_type_ids = "token_type_ids" in model_input_names
    if return_attention_mask is None:
        return_attention_mask = "attention_mask" in model_input_names
    return CallOptions(
        padding=pad,
        truncation=cut,
        max_length=max_length,
        stride=_whole_number("stride", stride, 0) or 0,
        pad_to_multiple_of=multiple,
        return_tensors=None if return_tensors is None else TensorType.of(return_tensors),
        return_token_type_ids=return_token_type_ids,
        return_attention_mask=return_attention_mask,
        **flags,
    )


DEFAULTS: Mapping[str, Any] = {
    "add_special_tokens": True,
    "padding": False,
    "truncation": None,
    "max_length": None,
    "stride": 0,
    "padding_side": None,
    "is_split_into_words": False,
    "pad_to_multiple_of": None,
    "return_tensors": None,
    "return_token_type_ids": None,
    "return_attention_mask": None,
    "return_overflowing_tokens": False,
    "return_special_tokens_mask": False,
    "return_offsets_mapping": False,
    "return_length": False,
    "verbose": True,
}


def check_text(name: str, text: Any, words: bool) -> None:
    """Refuse what is no text, no list of words and no batch of them.

    Raises:
        XlmfamError: with the place of the first wrong element.
    """
    if isinstance(text, str):
        return
    if not isinstance(text, (list, tuple)):
        raise XlmfamError(
            f"{name} is a {type(text).__name__}; it may be a string, a list of strings, or with "
            "is_split_into_words=True a list of words or a list of lists of words"
        )
    for number, item in enumerate(text):
        if isinstance(item, str):
            continue
        if isinstance(item, Sequence) and all(_is_text(part, words) for part in item):
            continue
        raise XlmfamError(f"{name}[{number}] is {item!r}; it may be a string, or a list of strings")


def _is_text(part: Any, words: bool) -> bool:
    if isinstance(part, str):
        return True
    return words and isinstance(part, (list, tuple)) and all(isinstance(w, str) for w in part)
