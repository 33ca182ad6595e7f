"""What calls of XLM take, checked and made into what the linen modules want.

Shapes: B batch, T text, S what is new of it (all, without a cache), H heads, D width, E source,
L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.dict_cache import filled, past_of
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import check_language_range, resolve_langs
from xlmfam.flax.base import as_arrays, is_concrete
from xlmfam.flax.cache import KeyValueCache, check_mask
from xlmfam.flax.checks import check_range

CheckIds = Callable[[str, Any], None]


class Prepared(NamedTuple):
    """A call, checked.

    Attributes:
        arguments: Of the linen module.
        shape: (B, S or T): of what came.
        new: S.
        end: Number of tokens with the new ones, where it is known.
    """

    arguments: dict[str, Any]
    shape: tuple[int, int]
    new: int
    end: int


def prepare(  # noqa: D417 - what is not listed is documented there
    config: XLMConfig,
    check_ids: CheckIds,
    input_ids: Any,
    attention_mask: Any,
    langs: Any,
    token_type_ids: Any,
    position_ids: Any,
    lengths: Any,
    cache: Any,
    head_mask: Any,
    inputs_embeds: Any,
    src_enc: Any = None,
    src_len: Any = None,
    src_mask: Any = None,
) -> Prepared:
    """Check a call; arguments as in ``XLMModel.__call__``.

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
        lengths=lengths,
        head_mask=head_mask,
        inputs_embeds=inputs_embeds,
        src_enc=src_enc,
        src_len=src_len,
        src_mask=src_mask,
    )
    ids, vectors = given["input_ids"], given["inputs_embeds"]
    check_inputs(ids, vectors, config.emb_dim)
    check_ids("input_ids", ids)
    batch, width = (ids if vectors is None else vectors).shape[:2]
    check_shape("token_type_ids", given["token_type_ids"], (batch, width))
    check_ids("token_type_ids", given["token_type_ids"])
    start, total = span(config, cache, given["attention_mask"], batch, width)
    valid = _valid(config, cache, given, total)
    # Of a dict's whole text only what is new is looked at; a buffer gets nothing else.
    new = start if isinstance(cache, dict) else 0
    positions = _positions(config, given["position_ids"], valid, (batch, width), total)
    layers, heads = config.n_layers, config.n_heads
    check_shape("head_mask", given["head_mask"], (layers, heads), (heads,))
    arguments = {
        "input_ids": _part(ids, new),
        "attention_mask": valid,
        "langs": _part(languages(config, langs, batch, width), new),
        "token_type_ids": _part(given["token_type_ids"], new),
        "position_ids": _part(positions, new),
        "past_key_values": past_of(cache, config) if isinstance(cache, dict) else cache,
        "use_cache": isinstance(cache, dict),
        "head_mask": given["head_mask"],
        "inputs_embeds": _part(vectors, new),
        **_source(config, given, batch),
    }
    return Prepared(arguments, (batch, width), width - new, width if total is None else total)


def span(
    config: XLMConfig, cache: Any, attention_mask: Any, batch: int, width: int
) -> tuple[int, int | None]:
    """Return how many tokens the cache holds, and how many there are with the new ones.

    The latter is ``None``, and the former 0, where a traced cache counts them.
    """
    if cache is None:
        return 0, width
    if not isinstance(cache, KeyValueCache):
        return filled(cache, config, batch, width), width
    if not config.is_causal:
        raise XlmfamError("a KeyValueCache needs a causal model, in which earlier tokens stay")
    check_mask(attention_mask, cache, batch, width, len(config.kept_heads(0)))
    if not is_concrete(cache.length):
        return 0, None
    start = int(cache.length)
    if attention_mask is not None and attention_mask.shape[1] < start + width:
        check_shape("attention_mask", attention_mask, (batch, start + width))
    return start, start + width


def _valid(config: XLMConfig, cache: Any, given: dict[str, Any], total: int | None) -> Any:
    """Return (B, T) booleans, false for padding, or ``None`` where nothing is padded."""
    attention_mask, lengths, ids = (
        values if values is None or not is_concrete(values) else np.asarray(values)
        for values in (given["attention_mask"], given["lengths"], given["input_ids"])
    )
    has_buffers = isinstance(cache, KeyValueCache)
    batch = (given["inputs_embeds"] if ids is None else ids).shape[0]
    if attention_mask is not None:
        if not has_buffers:
            check_shape("attention_mask", attention_mask, (batch, total))
        valid = attention_mask != 0
    elif lengths is not None:
        most = cache.max_length if total is None else total
        check_shape("lengths", lengths, (batch,))
        check_range("lengths", lengths, 0, most)
        valid = np.arange(most) < lengths[:, None]
    elif ids is None or has_buffers:
        return None
    else:
        valid = tokens_of(config, ids)
    return None if isinstance(valid, np.ndarray) and valid.all() else valid


def tokens_of(config: XLMConfig, ids: Any) -> Any:
    """Return (B, T): as many tokens as there are ids that are no padding.

    They stand at the front, or in a causal model behind the padding that a row begins with.
    """
    is_token = ids != config.pad_index
    first = is_token.argmax(-1)[:, None] if config.is_causal else 0
    places = np.arange(ids.shape[1])
    return (places >= first) & (places < first + is_token.sum(-1)[:, None])


def _positions(
    config: XLMConfig, position_ids: Any, valid: Any, shape: tuple[int, int], total: int | None
) -> Any:
    """Return the positions that the caller gave; check them, or those that would be counted."""
    most, (batch, width) = config.max_position_embeddings, shape
    if position_ids is not None:
        check_shape("position_ids", position_ids, (batch, width), (1, width), (width,))
        check_range("position_ids", position_ids, 0, most - 1)
        return position_ids.reshape(-1, width)
    if total is None or total <= most:
        return None
    if valid is None or not config.is_causal:
        raise XlmfamError(f"the text has {total} tokens, max_position_embeddings is {most}")
    if isinstance(valid, np.ndarray):
        last = total - 1 - int(valid.argmax(-1).min())
        check_range("position_ids", np.asarray(last), 0, most - 1)
    return None


def languages(config: XLMConfig, langs: Any, batch: int, width: int) -> Any:
    """Return (B or 1, width or 1) ids of languages, or ``None`` where they have no use."""
    langs = resolve_langs(config, langs)
    if langs is None or not config.uses_languages:
        return None
    if not jnp.issubdtype(langs.dtype, jnp.integer):
        raise XlmfamError(f"langs must hold names or ids, got {langs.dtype}")
    check_shape("langs", langs, *((b, s) for b in (batch, 1) for s in (width, 1)))
    if is_concrete(langs) and langs.size:
        values = np.asarray(langs)
        check_language_range(config, int(values.min()), int(values.max()))
    return langs


def _source(config: XLMConfig, given: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return the source's states and mask, for a decoder."""
    states, lengths, mask = given["src_enc"], given["src_len"], given["src_mask"]
    if states is None:
        return {}
    if config.is_encoder:
        raise XlmfamError("src_enc needs a decoder: set is_encoder=False in the config")
    check_shape("src_enc", states, (batch, None, config.emb_dim))
    width = states.shape[1]
    check_shape("src_mask", mask, (batch, width))
    check_shape("src_len", lengths, (batch,))
    if mask is None and lengths is not None:
        check_range("src_len", lengths, 0, width)
        mask = np.arange(width) < lengths[:, None]
    return {"src_enc": states, "src_mask": mask}


def _part(values: Any, start: int) -> Any:
    """Return the columns from ``start`` on; a single one stands for all of them."""
    return values if values is None or values.shape[1] == 1 or not start else values[:, start:]
