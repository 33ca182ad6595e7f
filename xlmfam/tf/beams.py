"""The hypotheses of greedy search, sampling and beam search, as tensors of fixed shape.

Shapes: B batch, N beams, R rows (B * N in beam search), C columns of the buffer, M steps,
V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from xlmfam.common.generation import GenerationPlan
from xlmfam.tf.attention import Tensor
from xlmfam.tf.layers import fold_in, uniform
from xlmfam.tf.outputs import GenerateOutput
from xlmfam.tf.processors import MASKED, Bounds

LOWEST = -1e9  # score of a beam that does not exist yet


class Single(NamedTuple):
    """Rows that go on independently of each other."""

    ids: Tensor  # (R, C)
    length: Tensor
    finished: Tensor  # (R,)

    @classmethod
    def start(cls, plan: GenerationPlan, ids: Tensor, room: int) -> Single:
        """Begin with the prompts (R, P), ``room`` columns behind them."""
        buffer = tf.pad(ids, [[0, 0], [0, room]], constant_values=plan.pad_token_id)
        return cls(buffer, tf.constant(ids.shape[1]), tf.zeros([ids.shape[0]], tf.bool))

    @property
    def rows(self) -> Tensor:
        """The token ids, (R, C)."""
        return self.ids

    @property
    def done(self) -> Tensor:
        """Which rows have ended, (R,)."""
        return self.finished

    def step(self, plan: GenerationPlan, scores: Tensor, bounds: Bounds, seed: Tensor) -> Single:
        """Append a token to each row, by the scores (R, V)."""
        del bounds
        if plan.do_sample:
            scores = scores + gumbel(scores.shape, seed, self.length)
        chosen = tf.argmax(scores, -1, output_type=tf.int32)
        chosen = tf.where(self.finished, plan.pad_token_id, chosen)
        return Single(
            put(self.ids, chosen, self.length),
            self.length + 1,
            self.finished | is_any_of(chosen, plan.eos_token_id),
        )

    def results(self, plan: GenerationPlan, bounds: Bounds) -> GenerateOutput:
        """Return the sequences without what only filled the buffer."""
        del plan
        return GenerateOutput(sequences=self.ids[:, int(bounds.first) : int(self.length)])


class Beams(NamedTuple):
    """The running and the finished hypotheses of a batch."""

    ids: Tensor  # (B, N, C)
    length: Tensor
    scores: Tensor  # (B, N)
    origins: Tensor  # (B, N, M): the row that each token came from, -1 where there is none
    last_rows: Tensor  # (R,): the row that each running hypothesis continues
    finished_ids: Tensor
    finished_origins: Tensor
    finished_lengths: Tensor  # (B, N)
    finished_scores: Tensor  # (B, N)
    done: Tensor  # (B,)

    @classmethod
    def start(cls, plan: GenerationPlan, ids: Tensor, room: int) -> Beams:
        """Begin with the prompts (B, P), ``room`` columns behind them."""
        (batch, length), beams = ids.shape, plan.num_beams
        buffer = tf.pad(ids, [[0, 0], [0, room]], constant_values=plan.pad_token_id)
        buffer = tf.repeat(buffer[:, None], beams, axis=1)
        origins = tf.fill([batch, beams, room], -1)
        return cls(
            ids=buffer,
            length=tf.constant(length),
            scores=tf.constant([[0.0] + [LOWEST] * (beams - 1)] * batch),
            origins=origins,
            last_rows=tf.range(batch * beams),
            finished_ids=buffer,
            finished_origins=origins,
            finished_lengths=tf.zeros([batch, beams], tf.int32),
            finished_scores=tf.fill([batch, beams], MASKED),
            done=tf.zeros([batch], tf.bool),
        )

    @property
    def rows(self) -> Tensor:
        """The running hypotheses, (R, C)."""
        return tf.reshape(self.ids, [-1, self.ids.shape[-1]])

    def step(self, plan: GenerationPlan, scores: Tensor, bounds: Bounds, seed: Tensor) -> Beams:
        """Extend the hypotheses by the log-probabilities (R, V)."""
        batch, beams, _ = self.ids.shape
        vocab = scores.shape[-1]
        total = tf.reshape(scores, [batch, beams, vocab]) + self.scores[..., None]
        best, index = _candidates(plan, tf.reshape(total, [batch, -1]), seed, self.length)
        beam, token = index // vocab, index % vocab
        is_end = is_any_of(token, plan.eos_token_id)
        after = self._finish(plan, best, beam, is_end, bounds)
        # The best candidates that go on; there are always enough, see _candidates.
        going = tf.argsort(tf.cast(is_end, tf.int32), stable=True)[:, :beams]
        beam, token = tf.gather(beam, going, batch_dims=1), tf.gather(token, going, batch_dims=1)
        token = tf.where(self.done[:, None], plan.pad_token_id, token)
        rows = tf.range(batch)[:, None] * beams + beam
        origins = tf.gather(self.origins, beam, batch_dims=1)
        return after._replace(
            ids=put(tf.gather(self.ids, beam, batch_dims=1), token, self.length),
            length=self.length + 1,
            scores=tf.gather(best, going, batch_dims=1),
            origins=put(origins, rows, self.length - bounds.prompt),
            last_rows=tf.reshape(rows, [-1]),
            done=self.done | after._overtaken(plan, best[:, 0], bounds),
        )

    def _finish(self, plan, best, beam, is_end, bounds: Bounds) -> Beams:
        """Keep the best of the finished hypotheses and those that end now.

        Of several end tokens the first is written, whichever came, as the reference does.
        """
        batch, beams, _ = self.ids.shape
        beam = beam[:, :beams]
        ends = is_end[:, :beams] & ~self.done[:, None]
        penalised = best[:, :beams] / penalty(plan, self.length + 1 - bounds.prompt)
        ids = tf.gather(self.ids, beam, batch_dims=1)
        if plan.eos_token_id:
            ids = put(ids, tf.fill([batch, beams], plan.eos_token_id[0]), self.length)
        rows = tf.range(batch)[:, None] * beams + beam
        origins = tf.gather(self.origins, beam, batch_dims=1)
        origins = put(origins, rows, self.length - bounds.prompt)
        return self._merge(tf.where(ends, penalised, MASKED), ids, origins, self.length + 1)

    def _merge(self, scores: Tensor, ids: Tensor, origins: Tensor, length: Tensor) -> Beams:
        """Keep the best of the finished hypotheses and (B, N) others, as many as beams."""
        every = tf.concat([self.finished_scores, scores], 1)
        best, kept = tf.math.top_k(every, self.ids.shape[1])
        lengths = tf.broadcast_to(length, scores.shape)

        def take(finished, others):
            return tf.gather(tf.concat([finished, others], 1), kept, batch_dims=1)

        return self._replace(
            finished_scores=best,
            finished_ids=take(self.finished_ids, ids),
            finished_origins=take(self.finished_origins, origins),
            finished_lengths=take(self.finished_lengths, lengths),
        )

    def _overtaken(self, plan: GenerationPlan, best: Tensor, bounds: Bounds) -> Tensor:
        """Which prompts' finished hypotheses no running one can overtake; ``best`` is (B,)."""
        worst = self.finished_scores[:, -1]
        full = worst > MASKED
        if plan.early_stopping is True:
            return full
        length = self.length + 1
        if plan.early_stopping == "never" and plan.length_penalty > 0.0:
            length = bounds.longest
        return full & (worst >= best / penalty(plan, length - bounds.prompt))

    def results(self, plan: GenerationPlan, bounds: Bounds) -> GenerateOutput:
        """Return the best hypotheses of every prompt, running ones included where not done."""
        scores = self.scores / penalty(plan, self.length - bounds.prompt)
        scores = tf.where(self.done[:, None], MASKED, scores)
        merged = self._merge(scores, self.ids, self.origins, self.length)

        def returned(values):
            chosen = values[:, : plan.num_return_sequences]
            return tf.reshape(chosen, [-1, *chosen.shape[2:]])

        lengths = returned(merged.finished_lengths)
        longest = int(tf.reduce_max(lengths))
        beyond = tf.range(longest) >= lengths[:, None]
        ids = returned(merged.finished_ids)[:, :longest]
        ids = tf.where(beyond, plan.pad_token_id, ids)
        return GenerateOutput(
            sequences=ids[:, int(bounds.first) :],
            sequences_scores=returned(merged.finished_scores),
            beam_indices=returned(merged.finished_origins)[:, : longest - int(bounds.prompt)],
        )


def _candidates(plan: GenerationPlan, total: Tensor, seed: Tensor, step: Tensor):
    """Enough candidates that ``num_beams`` of them go on, best first."""
    count = max(2, 1 + len(plan.eos_token_id)) * plan.num_beams
    count = min(count, total.shape[-1])
    if not plan.do_sample:
        return tf.math.top_k(total, count)
    # Gumbel top-k draws without replacement (Kool et al. 2019).
    index = tf.math.top_k(total + gumbel(total.shape, seed, step), count).indices
    best, order = tf.math.top_k(tf.gather(total, index, batch_dims=1), count)
    return best, tf.gather(index, order, batch_dims=1)


def penalty(plan: GenerationPlan, new_tokens: Tensor) -> Tensor:
    """Return what the score of a hypothesis with so many new tokens is divided by."""
    return tf.pow(tf.cast(new_tokens, tf.float32), plan.length_penalty)


def gumbel(shape: Any, seed: Tensor, step: Tensor) -> Tensor:
    """Return noise whose maximum over scores draws from their distribution."""
    return -tf.math.log(-tf.math.log(uniform(shape, fold_in(seed, step))))


def put(buffer: Tensor, values: Tensor, column: Tensor) -> Tensor:
    """Return (..., C) with ``values`` (...) in one column."""
    return tf.where(tf.range(buffer.shape[-1]) == column, values[..., None], buffer)


def is_any_of(tokens: Tensor, chosen: tuple[int, ...]) -> Tensor:
    """Return which of the tokens are among some; same shape."""
    if not chosen:
        return tf.zeros_like(tokens, tf.bool)
    return tf.reduce_any(tokens[..., None] == tf.constant(chosen, tokens.dtype), -1)
