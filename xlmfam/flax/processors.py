"""What the generation options do to scores, step by step, with static shapes.

Shapes: R rows (batch times beams), L buffer length, V vocabulary. Tokens stand in a buffer of
which only the columns from ``lengths.offset`` up to ``column`` are there; no option sees others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from xlmfam.common.generation import GenerationPlan

MASKED = float("-inf")


class Lengths(NamedTuple):
    """Columns of the token buffer; arrays, so that other lengths compile nothing.

    Attributes:
        offset: Where the longest prompt begins; before it is the bucket's padding.
        prompt: Where the first new token goes.
        least: Before this column no sequence ends.
        end: Behind the last new token.
    """

    offset: Any
    prompt: Any
    least: Any
    end: Any


def process(
    plan: GenerationPlan, lengths: Lengths, ids: Array, scores: Array, column: Array
) -> Array:
    """Apply every option that holds for greedy search, sampling and beams alike.

    Args:
        plan: The options; its own lengths are not looked at.
        lengths: The lengths.
        ids: (R, L) tokens.
        scores: (R, V), float32.
        column: Where the next token goes.

    Returns:
        (R, V).
    """
    there = jnp.arange(ids.shape[1])
    there = (there >= lengths.offset) & (there < column)
    if plan.repetition_penalty != 1.0:
        scores = penalise_repetition(ids, there, scores, plan.repetition_penalty)
    if plan.no_repeat_ngram_size:
        scores = forbid_repeated_ngrams(ids, there, scores, column, plan.no_repeat_ngram_size)
    if plan.bad_words_ids:
        scores = forbid_words(ids, lengths, scores, column, plan.bad_words_ids)
    if plan.eos_token_id:
        early = forbid_tokens(scores, plan.eos_token_id)
        scores = jnp.where(column < lengths.least, early, scores)
    if plan.forced_bos_token_id is not None:
        forced = force_tokens(scores, (plan.forced_bos_token_id,))
        scores = jnp.where(column - lengths.offset == 1, forced, scores)
    if plan.forced_eos_token_id:
        forced = force_tokens(scores, plan.forced_eos_token_id)
        scores = jnp.where(column == lengths.end - 1, forced, scores)
    if plan.remove_invalid_values:
        limits = jnp.finfo(scores.dtype)
        scores = jnp.nan_to_num(scores, nan=0.0, posinf=limits.max, neginf=limits.min)
    if plan.exponential_decay_length_penalty is not None:
        scores = hurry(plan, scores, column - lengths.prompt)
    scores = forbid_tokens(scores, plan.suppress_tokens)
    if plan.begin_suppress_tokens:
        first = forbid_tokens(scores, plan.begin_suppress_tokens)
        scores = jnp.where(column == lengths.prompt, first, scores)
    return jax.nn.log_softmax(scores, -1) if plan.renormalize_logits else scores


def warp(plan: GenerationPlan, scores: Array) -> Array:
    """Apply the options that shape a distribution to sample from; (R, V) to (R, V)."""
    # Beam search needs a way on besides the end of the sequence.
    least = 1 if plan.num_beams == 1 else max(2, len(plan.eos_token_id) + 1)
    if plan.temperature != 1.0:
        scores = scores / plan.temperature
    if plan.top_k:
        scores = keep_top_k(scores, max(plan.top_k, least))
    if plan.top_p < 1.0:
        scores = keep_top_p(scores, plan.top_p, least)
    if plan.typical_p < 1.0:
        scores = keep_typical(scores, plan.typical_p, least)
    return jax.nn.log_softmax(scores, -1) if plan.renormalize_logits else scores


def penalise_repetition(ids: Array, there: Array, scores: Array, penalty: float) -> Array:
    """Make tokens that occur in ``ids`` less likely (Keskar et al. 2019, section 4.1)."""
    penalised = jnp.where(scores < 0, scores * penalty, scores / penalty)
    seen = _marked(scores, ids, jnp.broadcast_to(there, ids.shape))
    return jnp.where(seen, penalised, scores)


def forbid_repeated_ngrams(
    ids: Array, there: Array, scores: Array, column: Array, size: int
) -> Array:
    """Forbid every token that would complete an n-gram that is already there."""
    starts = ids.shape[1] - size + 1
    if starts < 1:
        return scores
    tail = lax.dynamic_slice_in_dim(ids, column - size + 1, size - 1, 1)
    repeats = jnp.broadcast_to(there[:starts] & there[size - 1 :], (ids.shape[0], starts))
    for index in range(size - 1):
        repeats &= ids[:, index : index + starts] == tail[:, index, None]
    return jnp.where(_marked(scores, ids[:, size - 1 :], repeats), MASKED, scores)


def forbid_words(
    ids: Array,
    lengths: Lengths,
    scores: Array,
    column: Array,
    words: tuple[tuple[int, ...], ...],
) -> Array:
    """Forbid the last token of every word whose other tokens have just been generated."""
    rows = ids.shape[0]
    last = jnp.broadcast_to(jnp.asarray([word[-1] for word in words]), (rows, len(words)))
    matches = []
    for word in words:
        begin = column - len(word) + 1
        match = jnp.broadcast_to(begin >= lengths.offset, (rows,))
        for index, token in enumerate(word[:-1]):
            match &= ids[:, jnp.maximum(begin + index, 0)] == token
        matches.append(match)
    return jnp.where(_marked(scores, last, jnp.stack(matches, 1)), MASKED, scores)


def _marked(scores: Array, tokens: Array, marked: Array) -> Array:
    """Return (R, V) booleans: the ``tokens`` (R, N) where ``marked`` (R, N)."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros(scores.shape, bool).at[rows, tokens].max(marked)


def forbid_tokens(scores: Array, tokens: tuple[int, ...]) -> Array:
    """Forbid some tokens in every row."""
    return scores.at[:, jnp.asarray(tokens)].set(MASKED) if tokens else scores


def force_tokens(scores: Array, tokens: tuple[int, ...]) -> Array:
    """Forbid all but some tokens in every row, those being equal."""
    return jnp.full_like(scores, MASKED).at[:, jnp.asarray(tokens)].set(0.0)


def hurry(plan: GenerationPlan, scores: Array, steps: Array) -> Array:
    """Make the end of the sequence exponentially likelier once enough tokens have come."""
    start, factor = plan.exponential_decay_length_penalty or (0, 1.0)
    if not plan.eos_token_id:
        return scores
    ends = jnp.asarray(plan.eos_token_id)
    late = jnp.maximum(steps - start, 0)
    gain = jnp.power(jnp.float32(factor), late) - 1.0
    before = scores[:, ends]
    # A forbidden end stays forbidden: minus infinity and infinity make no number.
    raised = jnp.where(jnp.isinf(before), before, before + jnp.abs(before) * gain)
    return jnp.where(late > 0, scores.at[:, ends].set(raised), scores)


def keep_top_k(scores: Array, k: int) -> Array:
    """Keep the ``k`` best tokens (and what equals the last of them)."""
    worst = lax.top_k(scores, min(k, scores.shape[-1]))[0][:, -1:]
    return jnp.where(scores < worst, MASKED, scores)


def keep_top_p(scores: Array, p: float, least: int) -> Array:
    """Keep the smallest set of best tokens whose probability reaches ``p``."""
    indices = jnp.argsort(scores, -1)
    ordered = jnp.take_along_axis(scores, indices, -1)
    cut = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) <= 1 - p
    cut = cut.at[:, -least:].set(False)
    return _cut(scores, indices, cut)


def keep_typical(scores: Array, mass: float, least: int) -> Array:
    """Keep the tokens whose information is nearest the entropy (Meister et al. 2022)."""
    logs = jax.nn.log_softmax(scores, -1)
    entropy = -jnp.nansum(jnp.exp(logs) * logs, -1, keepdims=True)
    distance = jnp.abs(-logs - entropy)
    indices = jnp.argsort(distance, -1)
    distance = jnp.take_along_axis(distance, indices, -1)
    reached = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, indices, -1), -1), -1)
    last = jnp.sum(reached < mass, -1, keepdims=True).clip(max=scores.shape[-1] - 1)
    cut = distance > jnp.take_along_axis(distance, last, -1)
    cut = cut.at[:, :least].set(False)
    return _cut(scores, indices, cut)


def _cut(scores: Array, indices: Array, cut: Array) -> Array:
    """Forbid where ``cut`` (R, V) holds, in the order of ``indices``."""
    rows = jnp.arange(scores.shape[0])[:, None]
    return jnp.where(jnp.zeros_like(cut).at[rows, indices].set(cut), MASKED, scores)
