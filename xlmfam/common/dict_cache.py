"""XLM's ``cache``: a dict that a call fills in place.

It starts as ``{"slen": 0}``. Afterwards ``slen`` is the number of tokens whose keys and values it
holds, and number ``i`` has those of layer ``i``: (B, H, slen, K) each, and behind them those of
the source in a decoder. The inputs of a later call are the whole text so far, and its output is
about what is new.
"""

from __future__ import annotations

from typing import Any

from xlmfam.common.checks import check_past
from xlmfam.common.errors import XlmfamError


def filled(cache: Any, config: Any, batch: int | None, length: int | None) -> int:
    """Return how many tokens a dict holds.

    Args:
        cache: The dict.
        config: Has ``is_causal``, ``n_layers``, ``n_heads`` and ``emb_dim``.
        batch: B, where known.
        length: Tokens of the whole text, where known.

    Raises:
        XlmfamError: When it is no such dict, or has no use for the inputs.
    """
    start = cache.get("slen") if isinstance(cache, dict) else None
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise XlmfamError(
            'cache must be a dict that begins as {"slen": 0}, with a Python integer, or a '
            f"KeyValueCache; got {cache!r:.200}"
        )
    if start == 0:
        return 0
    if not config.is_causal:
        raise XlmfamError(
            "a filled cache needs a causal model: where tokens see what follows them, the keys "
            "and values of earlier ones change with every new one"
        )
    if length is not None and length <= start:
        raise XlmfamError(
            f"the cache holds {start} tokens and the inputs have {length}: nothing is new (give "
            "the whole text so far)"
        )
    check_past(past_of(cache, config), config.n_layers, batch, None, start, None)
    return start


def past_of(cache: dict, config: Any) -> tuple[tuple[Any, ...], ...] | None:
    """Return the keys and values of every layer, or ``None`` of an empty dict."""
    if not cache["slen"]:
        return None
    return tuple(tuple(cache[layer]) for layer in range(config.n_layers) if layer in cache)


def fill(cache: dict, presents: Any, length: int) -> None:
    """Put the keys and values of every layer, of ``length`` tokens, into the dict."""
    for layer, present in enumerate(presents):
        cache[layer] = tuple(present)
    cache["slen"] = length
