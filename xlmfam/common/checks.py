"""Checks of call arguments that need nothing but shapes, the same in the three backends."""

from __future__ import annotations

from typing import Any

from xlmfam.common.errors import XlmfamError


def check_inputs(input_ids: Any, inputs_embeds: Any, width: int) -> None:
    """Raise ``XlmfamError`` unless exactly one of the two is given, with a fitting shape.

    Args:
        input_ids: (B, S) ids or ``None``.
        inputs_embeds: (B, S, ``width``) or ``None``.
        width: Width of the embeddings.
    """
    if (input_ids is None) == (inputs_embeds is None):
        given = "both" if input_ids is not None else "neither"
        raise XlmfamError(f"give either input_ids or inputs_embeds: {given} came")
    if input_ids is not None and len(input_ids.shape) != 2:
        raise XlmfamError(f"input_ids must be (batch, sequence), got {tuple(input_ids.shape)}")
    if inputs_embeds is not None:
        shape = tuple(inputs_embeds.shape)
        if len(shape) != 3 or shape[-1] != width:
            raise XlmfamError(f"inputs_embeds must be (batch, sequence, {width}), got {shape}")


def check_shape(name: str, value: Any, *allowed: tuple[int | None, ...]) -> None:
    """Raise ``XlmfamError`` unless ``value`` has one of the shapes; ``None`` fits any size."""
    if value is None:
        return
    shape = tuple(value.shape)
    for wanted in allowed:
        if len(shape) == len(wanted) and all(
            w is None or s is None or s == w for s, w in zip(shape, wanted, strict=True)
        ):
            return
    shapes = " or ".join(str(wanted).replace("None", "*") for wanted in allowed)
    raise XlmfamError(f"{name} must have shape {shapes}, got {shape}")


def check_token_range(name: str, least: int, most: int, vocab_size: int) -> None:
    """Raise ``XlmfamError`` unless ids between ``least`` and ``most`` are in the vocabulary."""
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise XlmfamError(f"{name} holds {wrong}, outside the vocabulary of {vocab_size} ids")
