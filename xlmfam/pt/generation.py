"""Generation: greedy search, sampling and beam search on one preallocated cache.

Shapes: B batch, N beams or samples per prompt, R = B * N rows, C tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xlmfam.common.checks import check_shape
from xlmfam.common.errors import XlmfamError
from xlmfam.common.generation import GenerationConfig, GenerationPlan, plan_generation
from xlmfam.pt.beams import Beams
from xlmfam.pt.cache import KeyValueCache
from xlmfam.pt.outputs import GenerateOutput
from xlmfam.pt.processors import process, warp
from xlmfam.pt.streaming import Streamer

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
StoppingCriterion = Callable[[Tensor, Any], Any]
# What ``generate`` hands on to the model at every step, unless a model says otherwise.
MODEL_ARGUMENTS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "head_mask",
    "cross_attn_head_mask",
)
PER_ROW_ARGUMENTS = ("encoder_hidden_states", "encoder_attention_mask", "langs", "lang_ids")


class GenerationMixin:
    """Gives ``generate`` to a causal model that has ``forward`` and ``init_cache``."""

    config: Any
    generation_config: GenerationConfig
    generation_arguments: tuple[str, ...] = MODEL_ARGUMENTS

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        inputs: Tensor | None = None,
        tokenizer: Any = None,
        streamer: Streamer | None = None,
        logits_processor: Sequence[LogitsProcessor] = (),
        stopping_criteria: Sequence[StoppingCriterion] = (),
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continue prompts.

        Args:
            input_ids: (B, C) prompts, padded on the left; ``bos_token_id`` alone by default.
            attention_mask: (B, C); by default ``pad_token_id`` marks padding.
            generation_config: Options; by default those of the checkpoint.
            inputs: Another name of ``input_ids``.
            tokenizer: Decodes for ``stop_strings``.
            streamer: Receives tokens as they come (one prompt, no beams).
            logits_processor: Functions of ids (R, C) and scores (R, V) that return scores.
            stopping_criteria: Functions of ids (R, C) and scores that say whether to stop, for
                all rows or (R,) row by row.
            **kwargs: Options by name (see ``GenerationConfig``) and what the model takes at every
                step: ``generation_arguments`` lists it.

        Returns:
            (B * num_return_sequences, length) ids with the prompts, or a ``GenerateOutput``.

        Raises:
            ConfigError: For options that cannot be.
            XlmfamError: For inputs that cannot be.
        """
        extra = {name: kwargs.pop(name) for name in self.generation_arguments if name in kwargs}
        options = self.generation_config.or_given(generation_config, **kwargs)
        prompt = self._prompt(inputs if input_ids is None else input_ids, options)
        plan = plan_generation(options, prompt.shape[1], self.config.vocab_size)
        check_shape("attention_mask", attention_mask, tuple(prompt.shape))
        mask = padding_of(prompt, attention_mask, plan)
        if streamer is not None and (plan.num_beams > 1 or prompt.shape[0] > 1):
            raise XlmfamError("streamer needs one prompt and num_beams=1")
        stops = list(stopping_criteria)
        if options.stop_strings:
            stops.append(StopStrings(options.stop_strings, tokenizer, prompt.shape[1]))
        extra = self.prepare_generation(plan, prompt, mask, extra)
        if plan.takes_the_best and not logits_processor and not stops:
            extra = self.prepare_greedy(extra)
        stepper = Stepper(self, plan, prompt, mask, extra)
        processors = tuple(logits_processor)
        if plan.num_beams > 1:
            output = beam_search(stepper, plan, processors, stops, options.seed)
        else:
            output = single_search(stepper, plan, processors, stops, options.seed, streamer)
        return output if options.return_dict_in_generate else output.sequences

    @property
    def generates_with_cache(self) -> bool:
        """Whether keys and values of earlier tokens stay as they are when one is added."""
        return True

    def prepare_generation(
        self,
        plan: GenerationPlan,  # noqa: ARG002
        prompt: Tensor,  # noqa: ARG002
        mask: Tensor | None,  # noqa: ARG002
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the ``generation_arguments`` as ``next_logits`` wants them; models extend this.

        Args:
            plan: The options.
            prompt: (B, C).
            mask: (B, C) or ``None``.
            extra: What the caller gave.
        """
        return extra

    def prepare_greedy(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments where nobody looks but at the best score; models may extend this."""
        return extra

    def next_logits(
        self,
        ids: Tensor,
        length: int,  # noqa: ARG002
        mask: Tensor | None,
        cache: KeyValueCache | None,
        extra: dict[str, Any],
    ) -> Tensor:
        """Return the scores (R, V) of the token that follows.

        Args:
            ids: (R, S), what is new; everything without a cache.
            length: C, number of tokens so far.
            mask: (R, C) or ``None``.
            cache: Keys and values of the tokens before.
            extra: What ``prepare_generation`` returned.
        """
        output = self(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=False,
            last_logits_only=True,
            return_dict=True,
            **extra,
        )
        return output.logits[:, -1].float()

    def _prompt(self, input_ids: Tensor | None, options: GenerationConfig) -> Tensor:
        """Return (B, C) ids, checked."""
        if input_ids is None:
            if options.bos_token_id is None:
                raise XlmfamError("give input_ids: there is no bos_token_id to begin with")
            device = self.device  # type: ignore[attr-defined]
            return torch.tensor([[options.bos_token_id]], device=device)
        if not isinstance(input_ids, Tensor):
            raise XlmfamError(f"input_ids must be a torch tensor, got a {type(input_ids).__name__}")
        if input_ids.dim() != 2 or 0 in input_ids.shape:
            raise XlmfamError(
                f"input_ids must be (batch, sequence), not empty; got {tuple(input_ids.shape)}"
            )
        return input_ids


def padding_of(
    prompt: Tensor, attention_mask: Tensor | None, plan: GenerationPlan
) -> Tensor | None:
    """Return the (B, C) mask of the prompts, or ``None`` when nothing is padded."""
    if attention_mask is None:
        is_pad = prompt == plan.pad_token_id
        if plan.pad_token_id in plan.eos_token_id or not is_pad.any():
            return None
        attention_mask = (~is_pad).long()
    if not attention_mask.any(-1).all():
        raise XlmfamError("attention_mask masks a whole prompt")
    if not attention_mask[:, -1].all():
        raise XlmfamError(
            "prompts of unequal length must be padded on the left: padding_side='left'"
        )
    return None if attention_mask.all() else attention_mask


class Stepper:
    """Runs the model step by step: the prompt once per batch row, then one token per row.

    Args:
        model: The model.
        plan: The options.
        prompt: (B, C).
        mask: (B, C) or ``None``.
        extra: More arguments of the model.
    """

    def __init__(
        self,
        model: Any,
        plan: GenerationPlan,
        prompt: Tensor,
        mask: Tensor | None,
        extra: dict[str, Any],
    ):
        self.model = model
        self.prompt = prompt
        self.extra = extra
        self.mask = mask
        if mask is not None:
            more = mask.new_ones(mask.shape[0], plan.new_tokens)
            self.mask = torch.cat([mask, more], 1)
        self.cache: KeyValueCache | None = None
        if plan.use_cache and model.generates_with_cache:
            self.cache = model.init_cache(prompt.shape[0], plan.max_length)

    def first(self, times: int) -> Tensor:
        """Return the scores (B * times, V) after the prompts; rows repeat from here on."""
        scores = self._run(self.prompt, self.prompt.shape[1])
        if times == 1:
            return scores
        if self.cache is not None:
            self.cache.repeat(times)
        if self.mask is not None:
            self.mask = self.mask.repeat_interleave(times, 0)
        for name in PER_ROW_ARGUMENTS:
            if self.extra.get(name) is not None:
                self.extra[name] = self.extra[name].repeat_interleave(times, 0)
        return scores.repeat_interleave(times, 0)

    def next(self, ids: Tensor) -> Tensor:
        """Return the scores (R, V) after ``ids`` (R, C), of which the last column is new."""
        return self._run(ids if self.cache is None else ids[:, -1:], ids.shape[1])

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from row ``rows[i]``."""
        if self.cache is not None:
            self.cache.reorder(rows)

    def _run(self, ids: Tensor, length: int) -> Tensor:
        mask = None if self.mask is None else self.mask[:, :length]
        return self.model.next_logits(ids, length, mask, self.cache, self.extra)


def single_search(
    stepper: Stepper,
    plan: GenerationPlan,
    processors: tuple[LogitsProcessor, ...],
    stops: list[StoppingCriterion],
    seed: int | None,
    streamer: Streamer | None,
) -> GenerateOutput:
    """Greedy search or sampling, every row by itself."""
    logits = stepper.first(plan.num_return_sequences)
    rows, device = logits.shape[0], logits.device
    generator = seeded(seed, device)
    ids = stepper.prompt.new_full((rows, plan.max_length), plan.pad_token_id)
    length = plan.prompt_length
    ids[:, :length] = stepper.prompt.repeat_interleave(plan.num_return_sequences, 0)
    eos = torch.tensor(plan.eos_token_id, dtype=ids.dtype, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    history: list[Tensor] = []
    if streamer is not None:
        streamer.put(stepper.prompt.cpu())
    while True:
        so_far = ids[:, :length]
        scores = process(plan, so_far, logits)
        for processor in processors:
            scores = processor(so_far, scores)
        if plan.do_sample:
            scores = warp(plan, scores)
            chosen = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
        else:
            chosen = scores.argmax(-1)
        if plan.output_scores:
            history.append(scores)
        chosen = torch.where(finished, plan.pad_token_id, chosen)
        ids[:, length] = chosen
        length += 1
        if streamer is not None:
            streamer.put(chosen.cpu())
        finished |= torch.isin(chosen, eos)
        for stop in stops:
            finished |= torch.as_tensor(stop(ids[:, :length], scores), device=device)
        if length == plan.max_length or finished.all():
            break
        logits = stepper.next(ids[:, :length])
    if streamer is not None:
        streamer.end()
    return GenerateOutput(
        sequences=ids[:, :length].clone(), scores=tuple(history) if plan.output_scores else None
    )


def beam_search(
    stepper: Stepper,
    plan: GenerationPlan,
    processors: tuple[LogitsProcessor, ...],
    stops: list[StoppingCriterion],
    seed: int | None,
) -> GenerateOutput:
    """Beam search; with ``do_sample`` the candidates are drawn instead of the best taken."""
    logits = stepper.first(plan.num_beams)
    generator = seeded(seed, logits.device)
    beams = Beams(plan, stepper.prompt)
    history: list[Tensor] = []
    while True:
        scores = process(plan, beams.rows(), logits.log_softmax(-1))
        for processor in processors:
            scores = processor(beams.rows(), scores)
        if plan.do_sample:
            scores = warp(plan, scores)
        if plan.output_scores:
            history.append(scores)
        origins = beams.step(scores, generator)
        stopped = any(torch.as_tensor(stop(beams.rows(), scores)).all() for stop in stops)
        if beams.length == plan.max_length or beams.done.all() or stopped:
            break
        stepper.reorder(origins)
        logits = stepper.next(beams.rows())
    return beams.results(tuple(history) if plan.output_scores else None)


def seeded(seed: int | None, device: torch.device) -> torch.Generator | None:
    """Return a generator of its own for ``seed``, or ``None`` for torch's global one."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)


class StopStrings:
    """Stops a row once its new text contains one of some strings.

    Args:
        strings: One string or several.
        tokenizer: Has ``decode``.
        prompt_length: Number of tokens that are not new.
    """

    def __init__(self, strings: str | Sequence[str], tokenizer: Any, prompt_length: int):
        if tokenizer is None:
            raise XlmfamError("stop_strings needs tokenizer=... to see the text")
        self.strings = (strings,) if isinstance(strings, str) else tuple(strings)
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length

    def __call__(self, ids: Tensor, scores: Any) -> Tensor:
        """Return (R,) booleans for ids (R, C)."""
        del scores
        new = ids[:, self.prompt_length :].tolist()
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in new]
        found = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(found, device=ids.device)
