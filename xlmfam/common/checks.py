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
    name, value = ("input_ids", input_ids)
    if input_ids is None:
        name, value = ("inputs_embeds", inputs_embeds)
    if not hasattr(value, "shape"):
        raise XlmfamError(f"{name} must be a tensor, got a {type(value).__name__}")
    shape = tuple(value.shape)
    if input_ids is not None and len(shape) != 2:
        raise XlmfamError(f"input_ids must be (batch, sequence), got {shape}")
    if inputs_embeds is not None and (len(shape) != 3 or shape[-1] != width):
        raise XlmfamError(f"inputs_embeds must be (batch, sequence, {width}), got {shape}")
    if shape[1] == 0:
        raise XlmfamError(f"{name} needs at least one token in a row, got {shape}")


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


def check_past(past: Any, layers: int, *shape: int | None) -> None:
    """Raise ``XlmfamError`` unless past keys and values, as plain tuples, fit the model.

    Args:
        past: One tuple per layer that begins with a key and a value.
        layers: Number of layers.
        *shape: Of a key, (B, H, ``None``, K).
    """
    if len(past) != layers:
        raise XlmfamError(
            f"past_key_values must have one (key, value) for each of the {layers} layers, "
            f"got {len(past)}"
        )
    for layer in past:
        for value in layer[:2]:
            check_shape("a key or value of past_key_values", value, shape)


def check_cache(rows: int | None, batch: int | None, room: int, tokens: int | None) -> None:
    """Raise ``XlmfamError`` for a preallocated cache that is too small; ``None`` is unknown.

    Args:
        rows: Rows of the cache.
        batch: Rows of the inputs.
        room: Most tokens that it holds.
        tokens: Tokens that it is to hold, those of this call included.
    """
    if rows is not None and batch is not None and rows != batch:
        raise XlmfamError(f"the cache in past_key_values has {rows} rows, the inputs have {batch}")
    if tokens is not None and tokens > room:
        raise XlmfamError(f"the cache holds {room} tokens, {tokens} are needed")


def check_token_range(name: str, least: int, most: int, vocab_size: int) -> None:
    """Raise ``XlmfamError`` unless ids between ``least`` and ``most`` are in the vocabulary."""
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise XlmfamError(f"{name} holds {wrong}, outside the vocabulary of {vocab_size} ids")


def check_encoder(config: Any, states: Any, mask: Any, batch: int | None) -> None:
    """Raise ``XlmfamError`` for an encoder's states that the model or the inputs do not fit.

    Args:
        config: The model's config.
        states: (B, E, D) or ``None``.
        mask: (B, E) or ``None``.
        batch: B, where known.
    """
    if states is None:
        return
    if not config.add_cross_attention:
        raise XlmfamError(
            "encoder_hidden_states needs a model with cross-attention: "
            "set add_cross_attention=True in the config"
        )
    check_shape("encoder_hidden_states", states, (batch, None, config.hidden_size))
    check_shape("encoder_attention_mask", mask, (batch, states.shape[1]))
