"""What the generation options do to scores, step by step.

Shapes: R rows (batch times beams), C tokens so far, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlmfam.common.generation import GenerationPlan

MASKED = float("-inf")


def process(plan: GenerationPlan, ids: Tensor, scores: Tensor) -> Tensor:
    """Apply every option that holds for greedy search, sampling and beams alike.

    Args:
        plan: The options.
        ids: (R, C) tokens so far.
        scores: (R, V), float32.

    Returns:
        (R, V).
    """
    length = ids.shape[1]
    if plan.repetition_penalty != 1.0:
        scores = penalise_repetition(ids, scores, plan.repetition_penalty)
    if plan.no_repeat_ngram_size:
        scores = forbid_repeated_ngrams(ids, scores, plan.no_repeat_ngram_size)
    if plan.bad_words_ids:
        scores = forbid_words(ids, scores, plan.bad_words_ids)
    if length < plan.min_length:
        scores = forbid_tokens(scores, plan.eos_token_id)
    if plan.forced_bos_token_id is not None and length == 1:
        scores = force_tokens(scores, (plan.forced_bos_token_id,))
    if plan.forced_eos_token_id and length == plan.max_length - 1:
        scores = force_tokens(scores, plan.forced_eos_token_id)
    if plan.remove_invalid_values:
        limits = torch.finfo(scores.dtype)
        scores = scores.nan_to_num(nan=0.0, posinf=limits.max, neginf=limits.min)
    if plan.exponential_decay_length_penalty is not None:
        scores = hurry(plan, scores, length)
    scores = forbid_tokens(scores, plan.suppress_tokens)
    if length == plan.prompt_length:
        scores = forbid_tokens(scores, plan.begin_suppress_tokens)
    return scores.log_softmax(-1) if plan.renormalize_logits else scores


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
    return scores.log_softmax(-1) if plan.renormalize_logits else scores


def penalise_repetition(ids: Tensor, scores: Tensor, penalty: float) -> Tensor:
    """Make tokens that occur in ``ids`` less likely (Keskar et al. 2019, section 4.1)."""
    seen = scores.gather(1, ids)
    seen = torch.where(seen < 0, seen * penalty, seen / penalty)
    return scores.scatter(1, ids, seen)


def forbid_repeated_ngrams(ids: Tensor, scores: Tensor, size: int) -> Tensor:
    """Forbid every token that would complete an n-gram that is already there."""
    if ids.shape[1] < size:
        return scores
    ngrams = ids.unfold(1, size, 1)  # (R, C - size + 1, size)
    tail = ids[:, ids.shape[1] - size + 1 :]
    repeats = (ngrams[:, :, :-1] == tail[:, None]).all(-1)
    return _forbid_marked(scores, ngrams[:, :, -1], repeats)


def forbid_words(ids: Tensor, scores: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
    """Forbid the last token of every word whose other tokens have just been generated."""
    rows, length = ids.shape
    last = torch.tensor([word[-1] for word in words], device=ids.device).expand(rows, -1)
    matches = []
    for word in words:
        if len(word) > length + 1:
            matches.append(torch.zeros(rows, dtype=torch.bool, device=ids.device))
            continue
        head = torch.tensor(word[:-1], dtype=ids.dtype, device=ids.device)
        matches.append((ids[:, length - len(word) + 1 :] == head).all(-1))
    return _forbid_marked(scores, last, torch.stack(matches, 1))


def _forbid_marked(scores: Tensor, tokens: Tensor, marked: Tensor) -> Tensor:
    """Forbid ``tokens`` (R, N) where ``marked`` (R, N)."""
    counts = torch.zeros_like(scores).scatter_add_(1, tokens, marked.to(scores.dtype))
    return scores.masked_fill(counts > 0, MASKED)


def forbid_tokens(scores: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Forbid some tokens in every row."""
    if not tokens:
        return scores
    return scores.index_fill(1, torch.tensor(tokens, device=scores.device), MASKED)


def force_tokens(scores: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Forbid all but some tokens in every row, those being equal."""
    chosen = torch.tensor(tokens, device=scores.device)
    return torch.full_like(scores, MASKED).index_fill(1, chosen, 0.0)


def hurry(plan: GenerationPlan, scores: Tensor, length: int) -> Tensor:
    """Make the end of the sequence exponentially likelier once enough tokens have come."""
    start, factor = plan.exponential_decay_length_penalty or (0, 1.0)
    late = length - plan.prompt_length - start
    if late <= 0 or not plan.eos_token_id:
        return scores
    ends = torch.tensor(plan.eos_token_id, device=scores.device)
    before = scores[:, ends]
    raised = before + before.abs() * (factor**late - 1)
    # A forbidden end stays forbidden: minus infinity and infinity make no number.
    return scores.index_copy(1, ends, torch.where(before.isinf(), before, raised))


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Keep the ``k`` best tokens (and what equals the last of them)."""
    worst = scores.topk(min(k, scores.shape[-1]), -1).values[:, -1:]
    return scores.masked_fill(scores < worst, MASKED)


def keep_top_p(scores: Tensor, p: float, least: int) -> Tensor:
    """Keep the smallest set of best tokens whose probability reaches ``p``."""
    ordered, indices = scores.sort(-1)
    cut = ordered.softmax(-1).cumsum(-1) <= 1 - p
    cut[:, -least:] = False
    return scores.masked_fill(cut.scatter(1, indices, cut), MASKED)


def keep_typical(scores: Tensor, mass: float, least: int) -> Tensor:
    """Keep the tokens whose information is nearest the entropy (Meister et al. 2022)."""
    logs = scores.log_softmax(-1)
    entropy = -(logs.exp() * logs).nansum(-1, keepdim=True)
    distance, indices = (-logs - entropy).abs().sort(-1)
    reached = scores.gather(1, indices).softmax(-1).cumsum(-1)
    last = (reached < mass).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    cut = distance > distance.gather(1, last)
    cut[:, :least] = False
    return scores.masked_fill(cut.scatter(1, indices, cut), MASKED)
