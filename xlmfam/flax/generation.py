"""Generation: greedy search, sampling and beam search, each one compiled ``lax.while_loop``.

Tokens and caches stand in buffers whose lengths are rounded up to buckets, so that calls of
about the same length share what was compiled; the lengths themselves are arrays.

Shapes: B batch, N beams or samples per prompt, R = B * N rows, P columns of the (bucketed)
prompt, L columns of the buffers, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from xlmfam.common.checks import check_encoder, check_shape
from xlmfam.common.errors import XlmfamError
from xlmfam.common.generation import GenerationConfig, GenerationPlan, plan_generation
from xlmfam.flax.beams import Beams, beam_results, begin_beams, step_beams
from xlmfam.flax.cache import KeyValueCache
from xlmfam.flax.outputs import GenerateOutput
from xlmfam.flax.processors import Lengths, process, warp

LogitsProcessor = Callable[[Array, Array, Array], Array]
Reader = Callable[[Any, Array, Array, Any, bool, dict[str, Array]], dict[str, Any]]
# What ``generate`` hands on to the model at every step, unless a model says otherwise.
MODEL_ARGUMENTS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "head_mask",
    "cross_attn_head_mask",
)
PER_ROW_ARGUMENTS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "langs",
    "lang_ids",
    "memories",
)
PER_TOKEN_ARGUMENTS = ("langs", "lang_ids")
SMALL_BUCKETS = (16, 32)
BUCKET = 64
STEPS_BETWEEN_LOOKS = 16  # steps between two looks for stop strings


def read_text(
    config: Any,  # noqa: ARG001
    ids: Array,
    mask: Array,
    last: Any,
    cached: bool,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Return the module's arguments for the scores of the next token; models have their own.

    Args:
        config: The model's config.
        ids: (R, C) tokens; those behind ``last`` are not there yet.
        mask: (R, L), 1 for tokens, those to come included.
        last: Column of the last token that is there.
        cached: Whether a cache holds all tokens but the last.
        extra: What ``prepare_generation`` returned.
    """
    if cached:
        newest = lax.dynamic_slice_in_dim(ids, last, 1, 1)
        return {"input_ids": newest, "attention_mask": mask, "logits_at": 0, **extra}
    mask = mask[:, : ids.shape[1]]
    return {"input_ids": ids, "attention_mask": mask, "logits_at": last, **extra}


class GenerationMixin:
    """Gives ``generate`` to a causal model with a module and parameters."""

    config: Any
    module: Any
    params: Any
    generation_config: GenerationConfig
    check_ids: Callable[[str, Any], None]
    generation_arguments: tuple[str, ...] = MODEL_ARGUMENTS
    generates_with_cache: bool = True
    read: Reader = staticmethod(read_text)
    read_best: Reader | None = None  # where nobody looks but at the best score

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        generation_config: GenerationConfig | None = None,
        *,
        prng_key: Array | None = None,
        params: Any = None,
        inputs: Any = None,
        tokenizer: Any = None,
        logits_processor: Sequence[LogitsProcessor] = (),
        **kwargs: Any,
    ) -> Array | GenerateOutput:
        """Continue prompts.

        Inside ``jax.jit`` the result has ``max_length`` columns, filled up with
        ``pad_token_id``; outside it ends with the longest sequence.

        Args:
            input_ids: (B, C) prompts, padded on the left; ``bos_token_id`` alone by default.
            attention_mask: (B, C); by default ``pad_token_id`` marks padding.
            generation_config: Options; by default those of the checkpoint.
            prng_key: Draws samples; by default made from ``seed``, or else from 0.
            params: To use instead of the model's own.
            inputs: Another name of ``input_ids``.
            tokenizer: Decodes for ``stop_strings``.
            logits_processor: Functions of ids (R, L), scores (R, V) and the number of tokens so
                far (the columns behind are not there yet) that return scores; traced, and
                compiled once per function.
            **kwargs: Options by name (see ``GenerationConfig``) and what the model takes at every
                step: ``generation_arguments`` lists it.

        Returns:
            (B * num_return_sequences, length) ids with the prompts, or a ``GenerateOutput``.

        Raises:
            ConfigError: For options that cannot be.
            XlmfamError: For inputs that cannot be.
        """
        given = {name: kwargs.pop(name) for name in self.generation_arguments if name in kwargs}
        options = self.generation_config.or_given(generation_config, **kwargs)
        prompt = self._prompt(inputs if input_ids is None else input_ids, options)
        plan = plan_generation(options, prompt.shape[1], self.config.vocab_size)
        if attention_mask is not None and not hasattr(attention_mask, "shape"):
            attention_mask = np.asarray(attention_mask)
        check_shape("attention_mask", attention_mask, tuple(prompt.shape))
        mask = padding_of(prompt, attention_mask, plan)
        extra = self.prepare_generation(plan, prompt, mask, given)
        if prng_key is None:
            prng_key = jax.random.key(options.seed or 0)
        stop = None
        if options.stop_strings:
            stop = StopStrings(options.stop_strings, tokenizer)
        values, extra = self.place(self.params if params is None else params, extra)
        traced = is_traced(prompt, mask, extra, values, prng_key)
        if traced and stop:
            raise XlmfamError("stop_strings needs the text, which is not there inside jax.jit")
        inputs_, lengths, size = lay_out(plan, prompt, mask, extra, bucketed=not traced)
        processors = tuple(logits_processor)
        read = self.read
        if self.read_best is not None and plan.takes_the_best and not processors:
            read = self.read_best
        search = Search(self.module, read, without_lengths(plan), size, processors)
        times = plan.num_beams if plan.num_beams > 1 else plan.num_return_sequences
        use_cache = plan.use_cache and self.generates_with_cache
        logits, cache = prefill(self.module, read, times, size, use_cache, values, inputs_)
        state = start(search, inputs_.ids, lengths, logits, prng_key)._replace(cache=cache)
        if stop is None:
            state = run(search, values, inputs_, lengths, state, lengths.end)
        else:
            state = stop.run(search, values, inputs_, lengths, state)
        output = finish(search, state, lengths, traced)
        return output if options.return_dict_in_generate else output.sequences

    def prepare_generation(
        self,
        plan: GenerationPlan,  # noqa: ARG002
        prompt: Any,
        mask: Any,  # noqa: ARG002
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the ``generation_arguments`` as ``read`` wants them; models extend this.

        Args:
            plan: The options.
            prompt: (B, C).
            mask: (B, C).
            extra: What the caller gave.
        """
        arrays = {name: jnp.asarray(x) for name, x in extra.items() if x is not None}
        check_extra(self.config, arrays, prompt.shape[0])
        return arrays

    def place(self, params: Any, extra: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the parameters that a search needs, and what ``prepare_generation`` returned."""
        return params, extra

    def _prompt(self, input_ids: Any, options: GenerationConfig) -> Any:
        """Return (B, C) ids, checked."""
        if input_ids is None:
            if options.bos_token_id is None:
                raise XlmfamError("give input_ids: there is no bos_token_id to begin with")
            return np.asarray([[options.bos_token_id]], np.int32)
        if not hasattr(input_ids, "shape"):
            input_ids = np.asarray(input_ids)
        if len(input_ids.shape) != 2 or 0 in input_ids.shape:
            raise XlmfamError(
                f"input_ids must be (batch, sequence), not empty; got {tuple(input_ids.shape)}"
            )
        self.check_ids("input_ids", input_ids)
        return input_ids


class Search(NamedTuple):
    """What a search compiles for: hashable, static.

    Attributes:
        module: The linen module.
        read: Makes its arguments.
        plan: The options, without lengths.
        size: L.
        processors: The caller's own.
    """

    module: Any
    read: Reader
    plan: GenerationPlan
    size: int
    processors: tuple[LogitsProcessor, ...]


class Inputs(NamedTuple):
    """The prompts, padded to their bucket.

    Attributes:
        ids: (B, P).
        mask: (B, L), 1 for tokens, those to come included.
        extra: More arguments of the model.
    """

    ids: Any
    mask: Any
    extra: dict[str, Any]


class State(NamedTuple):
    """Where a search without beams stands.

    Attributes:
        column: Where the next token goes.
        ids: (R, L).
        finished: (R,).
        cache: Keys and values of all but the last token, or ``None``.
        history: (steps, R, V) scores of every step, or ``None``.
        key: Draws samples.
    """

    column: Array
    ids: Array
    finished: Array
    cache: KeyValueCache | None
    history: Array | None
    key: Array


def is_traced(*values: Any) -> bool:
    """Whether any array in ``values`` stands for others, as inside ``jax.jit``."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def bucket(length: int) -> int:
    """Return the length that ``length`` is rounded up to."""
    for size in SMALL_BUCKETS:
        if length <= size:
            return size
    return -(-length // BUCKET) * BUCKET


def without_lengths(plan: GenerationPlan) -> GenerationPlan:
    """Return ``plan`` as a static argument: calls that differ in lengths are to be equal."""
    return dataclasses.replace(plan, prompt_length=0, max_length=0, min_length=0)


def check_extra(config: Any, extra: dict[str, Any], batch: int) -> None:
    """Raise ``XlmfamError`` for more arguments that the model or the prompts do not fit."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    for name in ("head_mask", "cross_attn_head_mask"):
        check_shape(name, extra.get(name), (layers, heads), (heads,))
    mask = extra.get("encoder_attention_mask")
    check_encoder(config, extra.get("encoder_hidden_states"), mask, batch)


def padding_of(prompt: Any, attention_mask: Any, plan: GenerationPlan) -> Any:
    """Return the (B, C) mask of the prompts, checked where its values are there."""
    if attention_mask is None:
        if plan.pad_token_id in plan.eos_token_id:
            return np.ones(prompt.shape, np.int32)
        attention_mask = prompt != plan.pad_token_id
    if is_traced(attention_mask):
        return attention_mask.astype(jnp.int32)
    mask = (np.asarray(attention_mask) != 0).astype(np.int32)
    if not mask.any(-1).all():
        raise XlmfamError("attention_mask masks a whole prompt")
    if not mask[:, -1].all():
        raise XlmfamError(
            "prompts of unequal length must be padded on the left: padding_side='left'"
        )
    return mask


def lay_out(
    plan: GenerationPlan, prompt: Any, mask: Any, extra: dict[str, Any], bucketed: bool
) -> tuple[Inputs, Lengths, int]:
    """Pad the prompts on the left to their bucket; return them, the lengths, and L."""
    xp: Any = jnp if is_traced(prompt, mask) else np
    length = plan.prompt_length
    columns = bucket(length) if bucketed else length
    size = bucket(columns + plan.new_tokens) if bucketed else plan.max_length
    offset = columns - length
    ids = xp.pad(xp.asarray(prompt, np.int32), ((0, 0), (offset, 0)))
    mask = xp.pad(mask, ((0, 0), (offset, 0)))
    mask = xp.pad(mask, ((0, 0), (0, size - columns)), constant_values=1)
    extra = dict(extra)

    def widen(values: Array) -> Array:
        if values.shape[1] == 1:  # for all tokens
            return values
        return jnp.pad(values, ((0, 0), (offset, size - offset - values.shape[1])))

    for name in PER_TOKEN_ARGUMENTS:
        if name in extra:
            extra[name] = jax.tree.map(widen, extra[name])
    lengths = Lengths(offset, columns, offset + plan.min_length, offset + plan.max_length)
    return Inputs(ids, mask, extra), Lengths(*map(np.int32, lengths)), size


# ---- the compiled functions -----------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def prefill(
    module: Any,
    read: Reader,
    times: int,
    size: int,
    use_cache: bool,
    params: Any,
    inputs: Inputs,
) -> tuple[Array, KeyValueCache | None]:
    """Run the prompts, once per batch row; what it compiles serves all other options.

    Args:
        module: The linen module.
        read: Makes its arguments.
        times: N.
        size: L.
        use_cache: Keep keys and values.
        params: The parameters.
        inputs: The prompts.

    Returns:
        The scores (R, V) after the prompts, and a cache of length L with them in it, or ``None``.
    """
    batch, columns = inputs.ids.shape
    given = read(module.config, inputs.ids, inputs.mask, columns - 1, False, inputs.extra)
    output = module.apply({"params": params}, use_cache=use_cache, **given)
    logits = jnp.repeat(output.logits[:, -1].astype(jnp.float32), times, 0)
    cache = output.past_key_values if use_cache else None
    if isinstance(cache, tuple):
        cache = KeyValueCache.from_tuple(cache, size)
    return logits, None if cache is None else cache.repeat(times, batch)


@partial(jax.jit, static_argnums=0)
def start(
    search: Search, prompt: Array, lengths: Lengths, logits: Array, key: Array
) -> State | Beams:
    """Take the first step, from the scores (R, V) after the prompts (B, P); no cache in it yet."""
    plan, (batch, columns) = search.plan, prompt.shape
    steps = search.size - columns
    buffer = jnp.full((batch, search.size), plan.pad_token_id, jnp.int32)
    buffer = buffer.at[:, :columns].set(prompt)
    history = None
    if plan.output_scores:
        history = jnp.zeros((steps, *logits.shape), jnp.float32)
    column = jnp.asarray(columns, jnp.int32)
    if plan.num_beams > 1:
        beams = begin_beams(plan, buffer, column, steps, history, key)
        return step_beams(plan, lengths, beams, logits, search.processors)
    state = State(
        column=column,
        ids=jnp.repeat(buffer, logits.shape[0] // batch, 0),
        finished=jnp.zeros(logits.shape[0], bool),
        cache=None,
        history=history,
        key=key,
    )
    return choose(search, lengths, state, logits)


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def run(
    search: Search,
    params: Any,
    inputs: Inputs,
    lengths: Lengths,
    state: State | Beams,
    until: Array,
) -> State | Beams:
    """Take steps up to column ``until``, or until everything is finished."""
    rows = state.ids.reshape(-1, search.size).shape[0]
    times = rows // inputs.ids.shape[0]
    extra = dict(inputs.extra)
    for name in PER_ROW_ARGUMENTS:
        if name in extra:
            extra[name] = jax.tree.map(lambda x: jnp.repeat(x, times, 0), extra[name])
    mask = jnp.repeat(inputs.mask, times, 0)

    def going(state: State | Beams) -> Array:
        return (state.column < until) & ~jnp.all(state.finished)

    def step(state: State | Beams) -> State | Beams:
        logits, cache = next_logits(search, params, mask, extra, state)
        if isinstance(state, Beams):
            state = state._replace(cache=cache)
            return step_beams(search.plan, lengths, state, logits, search.processors)
        return choose(search, lengths, state._replace(cache=cache), logits)

    return lax.while_loop(going, step, state)


def next_logits(
    search: Search, params: Any, mask: Array, extra: dict[str, Any], state: State | Beams
) -> tuple[Array, KeyValueCache | None]:
    """Return the scores (R, V) after the tokens so far, and the cache with the last one in it."""
    ids = state.ids.reshape(-1, state.ids.shape[-1])
    cache = state.cache
    if cache is not None and isinstance(state, Beams):
        cache = cache.reorder(state.rows)
    given = search.read(search.module.config, ids, mask, state.column - 1, cache is not None, extra)
    if cache is not None:
        given["past_key_values"] = cache
    output = search.module.apply({"params": params}, **given)
    return output.logits[:, -1].astype(jnp.float32), output.past_key_values


def choose(search: Search, lengths: Lengths, state: State, logits: Array) -> State:
    """Greedy search or sampling: give every row its next token, from the scores (R, V)."""
    plan = search.plan
    scores = process(plan, lengths, state.ids, logits, state.column)
    for processor in search.processors:
        # The caller's functions see the tokens as if there were no bucket.
        seen = jnp.roll(state.ids, -lengths.offset, 1)
        scores = processor(seen, scores, state.column - lengths.offset)
    if plan.do_sample:
        scores = warp(plan, scores)
        key = jax.random.fold_in(state.key, state.column - lengths.prompt)
        chosen = jax.random.categorical(key, scores, -1)
    else:
        chosen = jnp.argmax(scores, -1)
    history = state.history
    if history is not None:
        step = state.column - lengths.prompt
        history = lax.dynamic_update_slice(history, scores[None], (step, 0, 0))
    chosen = jnp.where(state.finished, plan.pad_token_id, chosen).astype(jnp.int32)
    ends = jnp.isin(chosen, jnp.asarray(plan.eos_token_id, jnp.int32))
    return state._replace(
        column=state.column + 1,
        ids=lax.dynamic_update_slice(state.ids, chosen[:, None], (0, state.column)),
        finished=state.finished | ends,
        history=history,
    )


def finish(search: Search, state: State | Beams, lengths: Lengths, traced: bool) -> GenerateOutput:
    """Return the result: whole buffers when ``traced``, otherwise cut to what is there."""
    begin = int(lengths.offset)
    steps = state.column - lengths.prompt if traced else int(state.column - lengths.prompt)
    scores = None
    if state.history is not None:
        scores = tuple(state.history if traced else state.history[:steps])
    if isinstance(state, State):
        end = search.size if traced else int(state.column)
        return GenerateOutput(sequences=state.ids[:, begin:end], scores=scores)
    ids, ends, sequences_scores, origins = beam_results(search.plan, lengths, state)
    longest = search.size if traced else int(ends.max())
    return GenerateOutput(
        sequences=ids[:, begin:longest],
        scores=scores,
        sequences_scores=sequences_scores,
        beam_indices=origins[:, : longest - int(lengths.prompt)],
    )


class StopStrings:
    """Stops a row once its new text contains one of some strings.

    Args:
        strings: One string or several.
        tokenizer: Has ``decode``.
    """

    def __init__(self, strings: str | Sequence[str], tokenizer: Any):
        if tokenizer is None:
            raise XlmfamError("stop_strings needs tokenizer=... to see the text")
        self.strings = (strings,) if isinstance(strings, str) else tuple(strings)
        self.tokenizer = tokenizer

    def found(self, new: list[int]) -> bool:
        """Whether the text of ``new`` tokens contains one of the strings."""
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return any(string in text for string in self.strings)

    def run(self, search: Search, params: Any, inputs: Inputs, lengths: Lengths, state: Any) -> Any:
        """Run the search a few steps at a time and look at the text in between."""
        seen = int(lengths.prompt)
        while True:
            if isinstance(state, Beams):
                stopped = self._all_beams(state, lengths)
            else:
                state, stopped = self._cut(search, state, lengths, seen)
            seen = int(state.column)
            if stopped or seen >= int(lengths.end) or bool(jnp.all(state.finished)):
                return state
            # What beams did cannot be undone, so they are looked at after every step.
            more = 1 if isinstance(state, Beams) else STEPS_BETWEEN_LOOKS
            until = np.int32(min(seen + more, int(lengths.end)))
            state = run(search, params, inputs, lengths, state, until)

    def _all_beams(self, state: Beams, lengths: Lengths) -> bool:
        rows = np.asarray(state.ids).reshape(-1, state.ids.shape[-1])
        return all(self.found(row) for row in self._new(rows, lengths, int(state.column)))

    def _new(self, rows: np.ndarray, lengths: Lengths, end: int) -> list[list[int]]:
        return rows[:, int(lengths.prompt) : end].tolist()

    def _cut(self, search: Search, state: State, lengths: Lengths, seen: int):
        """Finish the rows that a string stops, undoing what came behind it.

        Returns:
            The state, with all that was run too far taken back, and whether all is finished.
        """
        ids, finished = np.array(state.ids), np.array(state.finished)
        column, prompt = int(state.column), int(lengths.prompt)
        ends = np.full(len(ids), column)
        for row, tokens in enumerate(self._new(ids, lengths, column)):
            for end in range(seen - prompt + 1, len(tokens) + 1):
                if self.found(tokens[:end]) or tokens[end - 1] in search.plan.eos_token_id:
                    ends[row] = prompt + end
                    ids[row, ends[row] :] = search.plan.pad_token_id
                    finished[row] = True
                    break
            else:
                ends[row] = seen if finished[row] else column
        if finished.all():
            column = int(ends.max())
        state = state._replace(
            ids=jnp.asarray(ids),
            finished=jnp.asarray(finished),
            column=jnp.asarray(column, jnp.int32),
        )
        return state, bool(finished.all())
