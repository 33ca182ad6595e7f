"""The searches of XLM's translation model, by the rules of the original release.

Each is one compiled ``lax.while_loop``.

Shapes: B batch, D width, V vocabulary, N beams, R = B * N rows, C columns of the target's buffer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from xlmfam.common.translation import Translation
from xlmfam.flax.beams import LOWEST, take_beams
from xlmfam.flax.cache import KeyValueCache


class Search(NamedTuple):
    """What a search compiles for: hashable, static.

    Attributes:
        module: The linen module.
        plan: The options, without the length.
        size: C.
    """

    module: Any
    plan: Translation
    size: int


Step = Callable[[Array, KeyValueCache], tuple[Array, KeyValueCache]]


@partial(jax.jit, static_argnums=0)
def translate(
    search: Search, params: Any, source: dict[str, Any], end: Array
) -> tuple[Array, Array]:
    """Search for translations of up to ``end`` tokens; return (B, C) ids, and the longest's length.

    Args:
        search: What to do.
        params: The parameters.
        source: The encoder's arguments.
        end: Most tokens of a translation.
    """
    module, plan = search.module, search.plan
    apply = partial(module.apply, {"params": params})
    states = apply(**source, method="encode").last_hidden_state
    config = module.config
    empty = KeyValueCache.empty(
        config.n_layers,
        states.shape[0],
        config.n_heads,
        search.size,
        config.emb_dim // config.n_heads,
        module.dtype,
    )
    cache = dataclasses.replace(empty, cross=apply(states, method="source_keys"))
    cache = cache.repeat(plan.num_beams, states.shape[0])
    given = {
        "src_enc": jnp.repeat(states, plan.num_beams, 0),
        "src_mask": jnp.repeat(source["attention_mask"], plan.num_beams, 0),
        "langs": None if plan.target_lang is None else jnp.full((1, 1), plan.target_lang),
    }

    def step(last: Array, cache: KeyValueCache) -> tuple[Array, KeyValueCache]:
        """Return the scores (R, V) after the newest tokens (R,), and the next cache."""
        output = apply(input_ids=last[:, None], past_key_values=cache, **given, method="decode")
        return output.logits[:, -1].astype(jnp.float32), output.past_key_values

    ids = jnp.full((states.shape[0], search.size), plan.pad_token_id, jnp.int32)
    ids = ids.at[:, 0].set(plan.eos_token_id)
    if plan.num_beams == 1:
        return _greedy(step, plan, ids, cache, end)
    return _beam(step, plan, ids, cache, end)


class Greedy(NamedTuple):
    """Where greedy search stands.

    Attributes:
        length: Tokens so far.
        ids: (B, C).
        finished: (B,).
        cache: Of all but the last token.
    """

    length: Array
    ids: Array
    finished: Array
    cache: KeyValueCache


def _greedy(
    step: Step, plan: Translation, ids: Array, cache: KeyValueCache, end: Array
) -> tuple[Array, Array]:
    """Take the best token at every step; what is not finished in time gets an end token."""

    def going(state: Greedy) -> Array:
        return (state.length < end) & ~jnp.all(state.finished)

    def further(state: Greedy) -> Greedy:
        last = lax.dynamic_index_in_dim(state.ids, state.length - 1, 1, keepdims=False)
        logits, cache = step(last, state.cache)
        best = jnp.argmax(logits, -1).astype(jnp.int32)
        best = jnp.where(state.finished, plan.pad_token_id, best)
        return Greedy(
            length=state.length + 1,
            ids=lax.dynamic_update_slice(state.ids, best[:, None], (0, state.length)),
            finished=state.finished | (best == plan.eos_token_id),
            cache=cache,
        )

    begin = Greedy(jnp.asarray(1, jnp.int32), ids, jnp.zeros(len(ids), bool), cache)
    state = lax.while_loop(going, further, begin)
    at_end = jnp.arange(ids.shape[1]) == state.length - 1
    ids = jnp.where(at_end & ~state.finished[:, None], plan.eos_token_id, state.ids)
    return ids, state.length


class Beam(NamedTuple):
    """Where beam search stands.

    Attributes:
        length: Tokens so far.
        ids: (B, N, C) running translations.
        scores: (B, N) sums of their log-probabilities.
        kept_ids: (B, N, C) finished ones.
        kept: (B, N) their scores, best first; minus infinity where there is none.
        kept_lengths: (B, N).
        done: (B,): no running translation matters any more.
        cache: Of all but the last token.
    """

    length: Array
    ids: Array
    scores: Array
    kept_ids: Array
    kept: Array
    kept_lengths: Array
    done: Array
    cache: KeyValueCache


def _beam(
    step: Step, plan: Translation, ids: Array, cache: KeyValueCache, end: Array
) -> tuple[Array, Array]:
    """Beam search by the rules of the original release."""
    shape = (len(ids), plan.num_beams)
    ids = jnp.repeat(ids[:, None], plan.num_beams, 1)
    begin = Beam(
        length=jnp.asarray(1, jnp.int32),
        ids=ids,
        scores=jnp.full(shape, LOWEST, jnp.float32).at[:, 0].set(0.0),
        kept_ids=ids,
        kept=jnp.full(shape, -jnp.inf, jnp.float32),
        kept_lengths=jnp.ones(shape, jnp.int32),
        done=jnp.zeros(shape[0], bool),
        cache=cache,
    )

    def going(state: Beam) -> Array:
        return (state.length < end) & ~jnp.all(state.done)

    state = lax.while_loop(going, lambda state: _further(step, plan, state, end), begin)
    ids, lengths = state.kept_ids[:, 0], state.kept_lengths[:, :1]
    places = jnp.arange(ids.shape[1])
    ids = jnp.where(places > lengths, plan.pad_token_id, ids)
    return jnp.where(places == lengths, plan.eos_token_id, ids), lengths.max() + 1


def _further(step: Step, plan: Translation, state: Beam, end: Array) -> Beam:
    """Take a step.

    Of twice as many candidates as beams, end tokens finish a translation until enough others go
    on; at the last length all of them finish one.
    """
    (batch, beams, _), length = state.ids.shape, state.length
    last = lax.dynamic_index_in_dim(state.ids, length - 1, 2, keepdims=False)
    logits, cache = step(last.reshape(-1), state.cache)
    chances = jax.nn.log_softmax(logits, -1).reshape(batch, beams, -1)
    total = (chances + state.scores[..., None]).reshape(batch, -1)
    best, index = lax.top_k(total, 2 * beams)
    beam, token = index // chances.shape[-1], (index % chances.shape[-1]).astype(jnp.int32)
    is_end = token == plan.eos_token_id
    full, worst = state.kept[:, -1] > -jnp.inf, state.kept[:, -1]
    attainable = best[:, 0] / _penalty(plan, end - 1)
    done = state.done | (full & (plan.early_stopping | (worst >= attainable)))
    finishes = (length == end - 1) | (is_end & (jnp.cumsum(~is_end, -1) < beams))
    new = jnp.where(finishes & ~done[:, None], best / _penalty(plan, length), -jnp.inf)
    kept, chosen = lax.top_k(jnp.concatenate([state.kept, new], 1), beams)
    every = jnp.concatenate([state.kept_ids, take_beams(state.ids, beam)], 1)
    lengths = jnp.concatenate([state.kept_lengths, jnp.full_like(beam, length)], 1)
    order = jnp.argsort(is_end, axis=-1, stable=True)[:, :beams]
    scores, beam, token = (jnp.take_along_axis(x, order, 1) for x in (best, beam, token))
    rows = jnp.arange(batch)[:, None] * beams + beam
    return Beam(
        length=length + 1,
        ids=lax.dynamic_update_slice(take_beams(state.ids, beam), token[..., None], (0, 0, length)),
        scores=scores,
        kept_ids=take_beams(every, chosen),
        kept=kept,
        kept_lengths=jnp.take_along_axis(lengths, chosen, 1),
        done=done,
        cache=cache.reorder(rows.reshape(-1)),
    )


def _penalty(plan: Translation, length: Any) -> Array:
    return jnp.power(jnp.asarray(length, jnp.float32), plan.length_penalty)
