"""What the generation options do to scores, step by step, with shapes that never change.

Token ids stand in a buffer of fixed width; those of a row are the columns from
``bounds.first`` up to ``length``, and what lies outside does not count.

Shapes: R rows (batch times beams), C columns of the buffer, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from xlmfam.common.generation import GenerationPlan
from xlmfam.tf.attention import Tensor

MASKED = float("-inf")


class Bounds(NamedTuple):
    """Where things stand in the buffer; tensors, so that other lengths need no new graph.

    Attributes:
        first: Column of the first token of the prompts as they came.
        prompt: Number of columns up to the end of the prompts.
        longest: Most columns to fill.
        least: No end of sequence before this many.
    """

    first: Tensor
    prompt: Tensor
    longest: Tensor
    least: Tensor


def process(
    plan: GenerationPlan, ids: Tensor, scores: Tensor, length: Tensor, bounds: Bounds
) -> Tensor:
    """Apply every option that holds for greedy search, sampling and beams alike.

    Args:
        plan: The options.
        ids: (R, C) tokens so far.
        scores: (R, V), float32.
        length: Number of columns filled.
        bounds: Where things stand.

    Returns:
        (R, V).
    """
    if plan.repetition_penalty != 1.0:
        scores = penalise_repetition(ids, scores, plan.repetition_penalty, length, bounds.first)
    if plan.no_repeat_ngram_size:
        size = plan.no_repeat_ngram_size
        scores = forbid_repeated_ngrams(ids, scores, size, length, bounds.first)
    if plan.bad_words_ids:
        scores = forbid_words(ids, scores, plan.bad_words_ids, length, bounds.first)
    scores = forbid_tokens(scores, plan.eos_token_id, length < bounds.least)
    if plan.forced_bos_token_id is not None:
        scores = force_tokens(scores, (plan.forced_bos_token_id,), length - bounds.first == 1)
    if plan.forced_eos_token_id:
        scores = force_tokens(scores, plan.forced_eos_token_id, length == bounds.longest - 1)
    if plan.remove_invalid_values:
        scores = replace_invalid(scores)
    if plan.exponential_decay_length_penalty is not None:
        scores = hurry(plan, scores, length - bounds.prompt)
    scores = forbid_tokens(scores, plan.suppress_tokens)
    scores = forbid_tokens(scores, plan.begin_suppress_tokens, length == bounds.prompt)
    return tf.nn.log_softmax(scores) if plan.renormalize_logits else scores


def warp(plan: GenerationPlan, scores: Tensor) -> Tensor:
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
    return tf.nn.log_softmax(scores) if plan.renormalize_logits else scores


def penalise_repetition(
    ids: Tensor, scores: Tensor, penalty: float, length: Tensor, first: Tensor
) -> Tensor:
    """Make tokens that occur in ``ids`` less likely (Keskar et al. 2019, section 4.1)."""
    columns = tf.range(ids.shape[1])
    counts = (columns >= first) & (columns < length)
    seen = _marked(ids, tf.broadcast_to(counts, ids.shape), scores)
    return tf.where(seen, tf.where(scores < 0, scores * penalty, scores / penalty), scores)


def forbid_repeated_ngrams(
    ids: Tensor, scores: Tensor, size: int, length: Tensor, first: Tensor
) -> Tensor:
    """Forbid every token that would complete an n-gram that is already there."""
    width = ids.shape[1] - size + 1
    if width < 1:
        return scores
    starts = tf.range(width)
    repeats = (starts >= first) & (starts + size <= length)
    repeats = tf.broadcast_to(repeats, [ids.shape[0], width])
    last = tail(ids, length, size - 1)
    for place in range(size - 1):
        repeats &= ids[:, place : place + width] == last[:, place : place + 1]
    return _forbid_marked(scores, ids[:, size - 1 :], repeats)


def forbid_words(
    ids: Tensor, scores: Tensor, words: tuple[tuple[int, ...], ...], length: Tensor, first: Tensor
) -> Tensor:
    """Forbid the last token of every word whose other tokens have just been generated."""
    rows = ids.shape[0]
    matches = []
    for word in words:
        before = len(word) - 1
        match = tf.reduce_all(tail(ids, length, before) == tf.constant(word[:-1], ids.dtype), 1)
        matches.append(match & (length - first >= before))
    last = tf.constant([word[-1] for word in words], ids.dtype)
    return _forbid_marked(
        scores, tf.broadcast_to(last, [rows, len(words)]), tf.stack(matches, axis=1)
    )


def tail(ids: Tensor, length: Tensor, count: int) -> Tensor:
    """Return the last ``count`` tokens (R, count); where there are fewer, anything."""
    columns = tf.maximum(length - count + tf.range(count), 0)
    return tf.gather(ids, columns, axis=1)


def _marked(tokens: Tensor, marked: Tensor, scores: Tensor) -> Tensor:
    """Return which of (R, V) are among ``tokens`` (R, N) where ``marked`` (R, N)."""
    rows, vocab = scores.shape
    index = tf.range(rows)[:, None] * vocab + tokens
    counts = tf.scatter_nd(
        tf.reshape(index, [-1, 1]),
        tf.reshape(tf.cast(marked, tf.float32), [-1]),
        tf.constant([rows * vocab]),
    )
    return tf.reshape(counts > 0, [rows, vocab])


def _forbid_marked(scores: Tensor, tokens: Tensor, marked: Tensor) -> Tensor:
    """Forbid ``tokens`` (R, N) where ``marked`` (R, N)."""
    return tf.where(_marked(tokens, marked, scores), MASKED, scores)


def _among(tokens: tuple[int, ...], scores: Tensor) -> np.ndarray:
    chosen = np.zeros(scores.shape[-1], bool)
    chosen[list(tokens)] = True
    return chosen


def forbid_tokens(scores: Tensor, tokens: tuple[int, ...], when: Tensor | None = None) -> Tensor:
    """Forbid some tokens in every row, always or only ``when``."""
    if not tokens:
        return scores
    chosen = tf.constant(_among(tokens, scores))
    return tf.where(chosen if when is None else chosen & when, MASKED, scores)


def force_tokens(scores: Tensor, tokens: tuple[int, ...], when: Tensor) -> Tensor:
    """Forbid all but some tokens in every row ``when``, those being equal."""
    forced = np.where(_among(tokens, scores), np.float32(0), np.float32(MASKED))
    return tf.where(when, tf.constant(forced), scores)


def replace_invalid(scores: Tensor) -> Tensor:
    """Replace NaN by zero and infinities by the largest numbers."""
    scores = tf.where(tf.math.is_nan(scores), 0.0, scores)
    return tf.clip_by_value(scores, scores.dtype.min, scores.dtype.max)


def hurry(plan: GenerationPlan, scores: Tensor, new_tokens: Tensor) -> Tensor:
    """Make the end of the sequence exponentially likelier once enough tokens have come."""
    start, factor = plan.exponential_decay_length_penalty or (0, 1.0)
    if not plan.eos_token_id:
        return scores
    late = tf.cast(tf.maximum(new_tokens - start, 0), scores.dtype)
    raised = scores + tf.abs(scores) * (tf.pow(tf.constant(factor, scores.dtype), late) - 1)
    # A forbidden end stays forbidden: minus infinity and infinity make no number.
    ends = tf.constant(_among(plan.eos_token_id, scores)) & ~tf.math.is_inf(scores)
    return tf.where(ends & (late > 0), raised, scores)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Keep the ``k`` best tokens (and what equals the last of them)."""
    worst = tf.math.top_k(scores, min(k, scores.shape[-1])).values[:, -1:]
    return tf.where(scores < worst, MASKED, scores)


def keep_top_p(scores: Tensor, p: float, least: int) -> Tensor:
    """Keep the smallest set of best tokens whose probability reaches ``p``."""
    order = tf.argsort(scores, stable=True)
    ordered = tf.gather(scores, order, batch_dims=1)
    cut = tf.cumsum(tf.nn.softmax(ordered), -1) <= 1 - p
    cut &= tf.range(scores.shape[-1]) < scores.shape[-1] - least
    return _forbid_marked(scores, order, cut)


def keep_typical(scores: Tensor, mass: float, least: int) -> Tensor:
    """Keep the tokens whose information is nearest the entropy (Meister et al. 2022)."""
    logs = tf.nn.log_softmax(scores)
    chances = tf.exp(logs)
    entropy = -tf.reduce_sum(tf.where(chances > 0, chances * logs, 0.0), -1, keepdims=True)
    distance = tf.abs(-logs - entropy)
    order = tf.argsort(distance, stable=True)
    ordered = tf.gather(distance, order, batch_dims=1)
    reached = tf.cumsum(tf.gather(chances, order, batch_dims=1), -1)
    last = tf.reduce_sum(tf.cast(reached < mass, tf.int32), -1, keepdims=True)
    last = tf.minimum(last, scores.shape[-1] - 1)
    cut = ordered > tf.gather(ordered, last, batch_dims=1)
    cut &= tf.range(scores.shape[-1]) >= least
    return _forbid_marked(scores, order, cut)
