"""Beam search as tensors of fixed shape: the running and the finished hypotheses of a batch.

Shapes: B batch, N beams, R = B * N rows, M candidates, C tokens so far, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlmfam.common.generation import GenerationPlan
from xlmfam.pt.outputs import GenerateOutput

LOWEST = -1e9  # score of a beam that does not exist yet


class Beams:
    """The running and the finished hypotheses of a batch, as tensors of fixed shape.

    Args:
        plan: The options.
        prompt: (B, C).
    """

    def __init__(self, plan: GenerationPlan, prompt: Tensor):
        batch, length = prompt.shape
        beams, device = plan.num_beams, prompt.device
        self.plan = plan
        self.length = length
        self.ids = prompt.new_full((batch, beams, plan.max_length), plan.pad_token_id)
        self.ids[:, :, :length] = prompt[:, None]
        self.scores = torch.full((batch, beams), LOWEST, device=device)
        self.scores[:, 0] = 0.0
        # The beam that each new token came from, by row; -1 where there is none.
        self.origins = prompt.new_full((batch, beams, plan.new_tokens), -1)
        self.finished_ids = self.ids.clone()
        self.finished_origins = self.origins.clone()
        self.finished_lengths = prompt.new_zeros((batch, beams))
        self.finished_scores = torch.full((batch, beams), float("-inf"), device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.eos = torch.tensor(plan.eos_token_id, dtype=prompt.dtype, device=device)

    def rows(self) -> Tensor:
        """Return the running hypotheses, (R, C)."""
        return self.ids[:, :, : self.length].flatten(0, 1)

    def step(self, scores: Tensor, generator: torch.Generator | None) -> Tensor:
        """Take one step.

        Args:
            scores: (R, V) log-probabilities of the next token.
            generator: Draws the candidates when sampling.

        Returns:
            (R,): the row that each running hypothesis continues.
        """
        batch, beams, _ = self.ids.shape
        vocab = scores.shape[-1]
        total = (scores.view(batch, beams, vocab) + self.scores[..., None]).flatten(1)
        best, index = self._candidates(total, generator)
        beam, token = index // vocab, index % vocab
        is_end = torch.isin(token, self.eos)
        self._finish(best, beam, is_end)
        # The best candidates that go on; there are always enough, see _candidates.
        going = is_end.int().sort(stable=True, dim=-1).indices[:, :beams]
        beam, token = beam.gather(1, going), token.gather(1, going)
        self.scores = best.gather(1, going)
        self.ids = take_beams(self.ids, beam)
        self.origins = take_beams(self.origins, beam)
        first_row = torch.arange(batch, device=beam.device)[:, None] * beams
        self.ids[:, :, self.length] = torch.where(self.done[:, None], self.plan.pad_token_id, token)
        self.origins[:, :, self.length - self.plan.prompt_length] = first_row + beam
        self._update_done(best[:, 0])
        self.length += 1
        return (first_row + beam).flatten()

    def _candidates(self, total: Tensor, generator: torch.Generator | None):
        """Enough candidates that ``num_beams`` of them go on, best first."""
        count = max(2, 1 + len(self.plan.eos_token_id)) * self.plan.num_beams
        count = min(count, total.shape[-1])
        if not self.plan.do_sample:
            # Of equals the first comes first, as in the siblings; topk promises no order.
            index = total.topk(count, -1).indices.sort(-1).values
            best, order = total.gather(1, index).sort(stable=True, dim=-1, descending=True)
            return best, index.gather(1, order)
        # Gumbel top-k draws without replacement (Kool et al. 2019).
        uniform = torch.rand(total.shape, generator=generator, device=total.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        index = (total + gumbel).topk(count, -1).indices
        best, order = total.gather(1, index).sort(stable=True, dim=-1, descending=True)
        return best, index.gather(1, order)

    def _finish(self, best: Tensor, beam: Tensor, is_end: Tensor) -> None:
        """Keep the best of the finished hypotheses and those that end now.

        Of several end tokens the first is written, whichever came, as the reference does.
        """
        beams = self.plan.num_beams
        ends = is_end[:, :beams] & ~self.done[:, None]
        beam = beam[:, :beams]
        divisor = (self.length + 1 - self.plan.prompt_length) ** self.plan.length_penalty
        scores = torch.where(ends, best[:, :beams] / divisor, float("-inf"))
        ids = take_beams(self.ids, beam)
        if self.plan.eos_token_id:
            ids[:, :, self.length] = self.plan.eos_token_id[0]
        origins = take_beams(self.origins, beam)
        first_row = torch.arange(len(ids), device=beam.device)[:, None] * beams
        origins[:, :, self.length - self.plan.prompt_length] = first_row + beam
        lengths = torch.full_like(self.finished_lengths, self.length + 1)
        self._merge(scores, ids, origins, lengths)

    def _merge(self, scores: Tensor, ids: Tensor, origins: Tensor, lengths: Tensor) -> None:
        """Keep the best ``num_beams`` of the finished hypotheses and (B, N) others."""
        every = torch.cat([self.finished_scores, scores], 1)
        self.finished_scores, kept = every.topk(self.plan.num_beams, -1)
        self.finished_ids = take_beams(torch.cat([self.finished_ids, ids], 1), kept)
        self.finished_origins = take_beams(torch.cat([self.finished_origins, origins], 1), kept)
        self.finished_lengths = torch.cat([self.finished_lengths, lengths], 1).gather(1, kept)

    def _update_done(self, best: Tensor) -> None:
        """Mark prompts whose finished hypotheses no running one can overtake; ``best`` is (B,)."""
        plan = self.plan
        worst = self.finished_scores[:, -1]
        full = worst > float("-inf")
        if plan.early_stopping is True:
            self.done |= full
            return
        length = self.length + 1
        if plan.early_stopping == "never" and plan.length_penalty > 0.0:
            length = plan.max_length
        attainable = best / (length - plan.prompt_length) ** plan.length_penalty
        self.done |= full & (worst >= attainable)

    def results(self, history: tuple[Tensor, ...] | None) -> GenerateOutput:
        """Return the best hypotheses of every prompt, running ones included where not done."""
        plan = self.plan
        divisor = (self.length - plan.prompt_length) ** plan.length_penalty
        scores = self.scores / divisor
        scores = torch.where(self.done[:, None], float("-inf"), scores)
        lengths = torch.full_like(self.finished_lengths, self.length)
        self._merge(scores, self.ids, self.origins, lengths)
        count = plan.num_return_sequences
        lengths = self.finished_lengths[:, :count].flatten()
        longest = int(lengths.max())
        steps = longest - plan.prompt_length
        ids = self.finished_ids[:, :count].flatten(0, 1)[:, :longest]
        beyond = torch.arange(longest, device=ids.device) >= lengths[:, None]
        return GenerateOutput(
            sequences=ids.masked_fill(beyond, plan.pad_token_id),
            scores=history,
            sequences_scores=self.finished_scores[:, :count].flatten(),
            beam_indices=self.finished_origins[:, :count].flatten(0, 1)[:, :steps],
        )


def take_beams(values: Tensor, beam: Tensor) -> Tensor:
    """Return (B, M, C): for every prompt the beams (B, M) of (B, N, C)."""
    index = beam[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index)
