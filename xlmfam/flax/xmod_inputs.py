"""What calls of X-MOD take, checked and made into what the linen modules want.

Shapes: B batch, S sequence, T sequence with past, H heads, D width, E encoder sequence, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from xlmfam.common.checks import check_encoder, check_inputs, check_past, check_shape
from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import (
    check_language_range,
    known_languages,
    language_id,
    resolve_langs,
)
from xlmfam.common.logging import get_logger
from xlmfam.flax.base import as_arrays, is_concrete
from xlmfam.flax.cache import KeyValueCache, check_mask, past_length
from xlmfam.flax.checks import check_range
from xlmfam.flax.xmod_adapters import Languages

logger = get_logger(__name__)

CheckIds = Callable[[str, Any], None]
Past = KeyValueCache | tuple[tuple[Array, ...], ...]


def prepare(  # noqa: D417 - what is not listed is documented there
    config: XmodConfig,
    check_ids: CheckIds,
    input_ids: Any,
    lang_ids: Any,
    attention_mask: Any,
    token_type_ids: Any,
    position_ids: Any,
    head_mask: Any,
    inputs_embeds: Any,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Any = None,
    past_key_values: Past | None = None,
    use_cache: bool | None = None,
) -> dict[str, Any]:
    """Return the linen module's arguments; those here as in ``XmodModel.__call__``.

    Args:
        config: The config of the transformer.
        check_ids: Raises for ids outside the vocabulary.

    Raises:
        XlmfamError: For what does not fit.
    """
    given = as_arrays(
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        position_ids=position_ids,
        head_mask=head_mask,
        inputs_embeds=inputs_embeds,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=encoder_attention_mask,
    )
    ids, vectors = given["input_ids"], given["inputs_embeds"]
    check_inputs(ids, vectors, config.hidden_size)
    check_ids("input_ids", ids)
    batch, length = (ids if vectors is None else vectors).shape[:2]
    start = _start(config, past_key_values, given["attention_mask"], batch, length)
    _check_types(config, given, batch, length)
    positions = _positions(config, given, start, batch, length)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    check_shape("head_mask", given["head_mask"], (layers, heads), (heads,))
    if use_cache is None:
        use_cache = config.use_cache
    return {
        "input_ids": ids,
        "languages": languages(config, lang_ids, batch, length).grouped(),
        "attention_mask": _without_full(given["attention_mask"]),
        "token_type_ids": given["token_type_ids"],
        "position_ids": positions,
        "head_mask": given["head_mask"],
        "inputs_embeds": vectors,
        "past_key_values": past_key_values,
        "use_cache": config.is_decoder and use_cache,
        **_encoder(config, given, batch, length),
    }


def languages(config: XmodConfig, lang_ids: Any, batch: int, length: int) -> Languages:
    """Return the languages of (B, S) tokens, which one default stands for.

    Args:
        config: The config.
        lang_ids: See ``XmodModel.__call__``.
        batch: B.
        length: S.

    Raises:
        XlmfamError: For a language that there is not, and where none is known.
    """
    if lang_ids is None:
        if config.default_language is None:
            raise XlmfamError(
                "give lang_ids, or say once what they are by default: "
                f"set_default_language(...), one of {known_languages(config)}"
            )
        language_id(config, config.default_language)
        return Languages((config.default_language,))
    ids = resolve_langs(config, lang_ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise XlmfamError(f"lang_ids must hold codes or numbers, got {ids.dtype}")
    check_shape("lang_ids", ids, *((b, s) for b in (batch, 1) for s in (length, 1)))
    if not isinstance(ids, Tracer):
        # On another device too: which adapters to read is worth waiting for.
        ids = np.asarray(ids)
        check_language_range(config, int(ids.min()), int(ids.max()), "lang_ids")
    ids = (jnp if isinstance(ids, Tracer) else np).broadcast_to(ids, (batch, ids.shape[1]))
    return Languages.of(ids, config.languages)


def _start(
    config: XmodConfig, past: Past | None, attention_mask: Any, batch: int, length: int
) -> Any:
    """Return how many tokens the past holds, an array where it is traced; check past and mask."""
    if past is not None and not config.is_decoder:
        raise XlmfamError("past_key_values needs a decoder: set is_decoder=True in the config")
    heads = config.num_attention_heads
    if past is not None and not isinstance(past, KeyValueCache):
        width = config.hidden_size // heads
        check_past(past, config.num_hidden_layers, batch, heads, None, width)
    start: Any = past_length(past)
    start = int(start) if is_concrete(start) else start
    total = start + length if isinstance(start, int) else None
    by_query = attention_mask is not None and len(attention_mask.shape) == 3
    check_mask(None if by_query else attention_mask, past, batch, length, heads)
    if by_query:
        check_shape("attention_mask", attention_mask, (batch, length, total))
    elif attention_mask is not None and total is not None and attention_mask.shape[1] < total:
        check_shape("attention_mask", attention_mask, (batch, total))
    return start


def _check_types(config: XmodConfig, given: dict[str, Any], batch: int, length: int) -> None:
    """Check token types; make (S,) into (1, S)."""
    types = given["token_type_ids"]
    if types is None:
        return
    check_shape("token_type_ids", types, (batch, length), (1, length), (length,))
    check_range("token_type_ids", types, 0, config.type_vocab_size - 1)
    given["token_type_ids"] = types.reshape(-1, length)


def _positions(
    config: XmodConfig, given: dict[str, Any], start: Any, batch: int, length: int
) -> Any:
    """Return (B or 1, S) positions, given or counted; checked where looking is cheap."""
    positions, most = given["position_ids"], config.max_position_embeddings
    check_shape("position_ids", positions, (batch, length), (1, length), (length,))
    if positions is None:
        positions = _count(config, given["input_ids"], given["attention_mask"], start, length)
    if config.position_embedding_type == "absolute":
        check_range("position_ids", positions, 0, most - 1)
    elif isinstance(start, int) and start + length > most:
        raise XlmfamError(
            f"the text has {start + length} tokens, max_position_embeddings is {most}"
        )
    return positions.reshape(-1, length)


def _count(config: XmodConfig, ids: Any, mask: Any, start: Any, length: int) -> Any:
    """Return (B or 1, S) positions, counted over what is no padding; NumPy's where they can be."""
    if all(values is None or is_concrete(values) for values in (ids, mask)):
        ids, mask = (x if x is None else np.asarray(x) for x in (ids, mask))
    before = start
    if mask is not None and len(mask.shape) == 2 and not (isinstance(start, int) and start == 0):
        before = ((mask != 0) & (np.arange(mask.shape[1]) < start)).sum(-1)[:, None]
    pad = config.pad_token_id
    if ids is None:
        return np.arange(length)[None] + before + pad + 1
    is_token = ids != pad
    return (is_token.cumsum(-1) + before) * is_token + pad


def _without_full(attention_mask: Any) -> Any:
    """Return a (B, T) mask, or ``None`` where it is known to hide nothing."""
    if attention_mask is None or len(attention_mask.shape) == 3 or not is_concrete(attention_mask):
        return attention_mask
    return None if np.asarray(attention_mask).all() else attention_mask


def _encoder(config: XmodConfig, given: dict[str, Any], batch: int, length: int) -> dict[str, Any]:
    """Return the encoder's states and mask, for a decoder."""
    states, mask = given["encoder_hidden_states"], given["encoder_attention_mask"]
    if states is not None and not config.is_decoder:
        logger.warning("encoder_hidden_states is not used: this model is no decoder")
        states = None
    if states is None:
        return {}
    by_query = mask is not None and len(mask.shape) == 3
    check_encoder(config, states, None if by_query else mask, batch)
    if by_query:
        check_shape("encoder_attention_mask", mask, (batch, length, states.shape[1]))
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}
