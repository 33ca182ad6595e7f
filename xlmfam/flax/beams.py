"""Beam search with static shapes: the running and the finished hypotheses of a batch.

Shapes: B batch, N beams, R = B * N rows, M candidates, L columns of the buffers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from xlmfam.common.generation import GenerationPlan
from xlmfam.flax.cache import KeyValueCache
from xlmfam.flax.processors import Lengths, process, warp

LOWEST = -1e9  # score of a beam that does not exist yet


class Beams(NamedTuple):
    """Where beam search stands; tokens are counted in columns of the buffers.

    Attributes:
        column: Where the next token goes.
        ids: (B, N, L) running hypotheses.
        scores: (B, N) sums of their log-probabilities.
        origins: (B, N, steps): the row each new token came from; -1 where there is none.
        rows: (R,): the row that each running hypothesis continues.
        finished_ids: (B, N, L).
        finished_scores: (B, N), best first; minus infinity where there is none.
        finished_origins: (B, N, steps).
        finished_ends: (B, N) columns behind their last tokens.
        finished: (B,): no running hypothesis can overtake.
        cache: Keys and values of all but the last token, or ``None``.
        history: (steps, R, V) scores of every step, or ``None``.
        key: Draws candidates when sampling.
    """

    column: Array
    ids: Array
    scores: Array
    origins: Array
    rows: Array
    finished_ids: Array
    finished_scores: Array
    finished_origins: Array
    finished_ends: Array
    finished: Array
    cache: KeyValueCache | None
    history: Array | None
    key: Array


def begin_beams(
    plan: GenerationPlan,
    buffer: Array,
    column: Array,
    steps: int,
    history: Array | None,
    key: Array,
) -> Beams:
    """Return the start of a search from the prompts in ``buffer`` (B, L)."""
    batch, beams = buffer.shape[0], plan.num_beams
    ids = jnp.repeat(buffer[:, None], beams, 1)
    origins = jnp.full((batch, beams, steps), -1, jnp.int32)
    return Beams(
        column=column,
        ids=ids,
        scores=jnp.full((batch, beams), LOWEST, jnp.float32).at[:, 0].set(0.0),
        origins=origins,
        rows=jnp.arange(batch * beams),
        finished_ids=ids,
        finished_scores=jnp.full((batch, beams), -jnp.inf, jnp.float32),
        finished_origins=origins,
        finished_ends=jnp.zeros((batch, beams), jnp.int32),
        finished=jnp.zeros(batch, bool),
        cache=None,
        history=history,
        key=key,
    )


def step_beams(
    plan: GenerationPlan,
    lengths: Lengths,
    state: Beams,
    logits: Array,
    processors: tuple[Callable[..., Array], ...],
) -> Beams:
    """Take one step from the scores (R, V) of the next token."""
    batch, beams, _ = state.ids.shape
    scores, history = _scores(plan, lengths, state, logits, processors)
    vocab = scores.shape[-1]
    total = (scores.reshape(batch, beams, vocab) + state.scores[..., None]).reshape(batch, -1)
    key = jax.random.fold_in(state.key, state.column - lengths.prompt)
    best, index = _candidates(plan, total, key)
    beam, token = index // vocab, (index % vocab).astype(jnp.int32)
    is_end = jnp.isin(token, jnp.asarray(plan.eos_token_id, jnp.int32))
    state = _finish(plan, lengths, state, best, beam, is_end)
    # The best candidates that go on; there are always enough, see _candidates.
    going = jnp.argsort(is_end, axis=-1, stable=True)[:, :beams]
    beam, token = (jnp.take_along_axis(x, going, 1) for x in (beam, token))
    token = jnp.where(state.finished[:, None], plan.pad_token_id, token)
    rows = jnp.arange(batch)[:, None] * beams + beam
    step = state.column - lengths.prompt
    return state._replace(
        column=state.column + 1,
        ids=_put(take_beams(state.ids, beam), token, state.column),
        scores=jnp.take_along_axis(best, going, 1),
        origins=_put(take_beams(state.origins, beam), rows.astype(jnp.int32), step),
        rows=rows.reshape(-1),
        finished=_finished(plan, lengths, state, best[:, 0]),
        history=history,
    )


def _scores(plan, lengths, state, logits, processors):
    """Return processed log-probabilities (R, V), and the history with them."""
    ids = state.ids.reshape(-1, state.ids.shape[-1])
    scores = process(plan, lengths, ids, jax.nn.log_softmax(logits, -1), state.column)
    for processor in processors:
        # The caller's functions see the tokens as if there were no bucket.
        seen = jnp.roll(ids, -lengths.offset, 1)
        scores = processor(seen, scores, state.column - lengths.offset)
    if plan.do_sample:
        scores = warp(plan, scores)
    if state.history is None:
        return scores, None
    at = (state.column - lengths.prompt, 0, 0)
    return scores, lax.dynamic_update_slice(state.history, scores[None], at)


def _candidates(plan: GenerationPlan, total: Array, key: Array) -> tuple[Array, Array]:
    """Enough candidates (B, M) that ``num_beams`` of them go on, best first."""
    count = max(2, 1 + len(plan.eos_token_id)) * plan.num_beams
    count = min(count, total.shape[-1])
    if not plan.do_sample:
        best, index = lax.top_k(total, count)
        return best, index
    # Gumbel top-k draws without replacement (Kool et al. 2019).
    index = lax.top_k(total + jax.random.gumbel(key, total.shape), count)[1]
    best = jnp.take_along_axis(total, index, 1)
    order = jnp.argsort(-best, axis=-1, stable=True)
    return jnp.take_along_axis(best, order, 1), jnp.take_along_axis(index, order, 1)


def _finish(
    plan: GenerationPlan, lengths: Lengths, state: Beams, best: Array, beam: Array, is_end: Array
) -> Beams:
    """Keep the best of the finished hypotheses and those that end now.

    Of several end tokens the first is written, whichever came, as the reference does.
    """
    if not plan.eos_token_id:
        return state
    batch, beams, _ = state.ids.shape
    ends = is_end[:, :beams] & ~state.finished[:, None]
    beam = beam[:, :beams]
    divisor = _penalty(plan, state.column + 1 - lengths.prompt)
    scores = jnp.where(ends, best[:, :beams] / divisor, -jnp.inf)
    token = jnp.full((batch, beams), plan.eos_token_id[0], jnp.int32)
    rows = (jnp.arange(batch)[:, None] * beams + beam).astype(jnp.int32)
    return _merge(
        state,
        scores,
        _put(take_beams(state.ids, beam), token, state.column),
        _put(take_beams(state.origins, beam), rows, state.column - lengths.prompt),
        state.column + 1,
    )


def _merge(state: Beams, scores: Array, ids: Array, origins: Array, end: Array) -> Beams:
    """Keep the best ``num_beams`` of the finished hypotheses and (B, N) others."""
    every = jnp.concatenate([state.finished_scores, scores], 1)
    best, kept = lax.top_k(every, scores.shape[1])
    ends = jnp.concatenate([state.finished_ends, jnp.full_like(state.finished_ends, end)], 1)
    return state._replace(
        finished_scores=best,
        finished_ids=take_beams(jnp.concatenate([state.finished_ids, ids], 1), kept),
        finished_origins=take_beams(jnp.concatenate([state.finished_origins, origins], 1), kept),
        finished_ends=jnp.take_along_axis(ends, kept, 1),
    )


def _finished(plan: GenerationPlan, lengths: Lengths, state: Beams, best: Array) -> Array:
    """Prompts whose finished hypotheses no running one can overtake; ``best`` is (B,)."""
    worst = state.finished_scores[:, -1]
    full = worst > -jnp.inf
    if plan.early_stopping is True:
        return state.finished | full
    column = state.column + 1
    if plan.early_stopping == "never" and plan.length_penalty > 0.0:
        column = lengths.end
    attainable = best / _penalty(plan, column - lengths.prompt)
    return state.finished | (full & (worst >= attainable))


@partial(jax.jit, static_argnums=0)
def beam_results(
    plan: GenerationPlan, lengths: Lengths, state: Beams
) -> tuple[Array, Array, Array, Array]:
    """Return the best hypotheses of every prompt, running ones included where not finished.

    Returns:
        With B * num_return_sequences rows each: ids, L columns; the columns behind their last
        tokens; scores; origins.
    """
    scores = state.scores / _penalty(plan, state.column - lengths.prompt)
    scores = jnp.where(state.finished[:, None], -jnp.inf, scores)
    state = _merge(state, scores, state.ids, state.origins, state.column)
    count = plan.num_return_sequences

    def best(values: Array) -> Array:
        return values[:, :count].reshape(-1, *values.shape[2:])

    ids, ends = best(state.finished_ids), best(state.finished_ends)
    beyond = jnp.arange(ids.shape[-1]) >= ends[:, None]
    ids = jnp.where(beyond, plan.pad_token_id, ids)
    return ids, ends, best(state.finished_scores), best(state.finished_origins)


def _penalty(plan: GenerationPlan, steps: Any) -> Array:
    return jnp.power(jnp.asarray(steps, jnp.float32), plan.length_penalty)


def _put(values: Array, new: Array, at: Array) -> Array:
    """Return (B, N, C) with ``new`` (B, N) in place ``at`` of the last axis."""
    return lax.dynamic_update_slice(values, new[..., None].astype(values.dtype), (0, 0, at))


def take_beams(values: Array, beam: Array) -> Array:
    """Return (B, M, C): for every prompt the beams (B, M) of (B, N, C)."""
    return jnp.take_along_axis(values, beam[..., None], 1)
