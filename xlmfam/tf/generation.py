"""Generation: greedy search, sampling and beam search, each one compiled loop.

The prompts are padded on the left to a bucket and the cache has room for a bucket of new tokens,
so that calls of similar lengths share a graph. Lengths are tensors in it.

Shapes: B batch, N beams or samples per prompt, R = B * N rows, C columns of the buffer,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from xlmfam.common.checks import check_shape
from xlmfam.common.errors import XlmfamError
from xlmfam.common.generation import GenerationConfig, GenerationPlan, plan_generation
from xlmfam.tf.attention import Tensor
from xlmfam.tf.beams import Beams, Single
from xlmfam.tf.cache import KeyValueCache, cache_from_past, repeat
from xlmfam.tf.outputs import GenerateOutput
from xlmfam.tf.processors import Bounds, process, warp

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
StoppingCriterion = Callable[[Tensor, Any], Any]
# What ``generate`` hands on to the model at every step, unless a model says otherwise.
MODEL_ARGUMENTS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "head_mask",
    "cross_attn_head_mask",
)
PER_ROW_ARGUMENTS = (
    "mems",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "langs",
    "lang_ids",
    "token_lang_ids",
)
PER_TOKEN_ARGUMENTS = ("langs", "token_lang_ids")  # (B, C), padded as the prompts are
SMALL_BUCKETS = (16, 32)
BUCKET = 64
XLA_PAYS = 100_000_000  # parameters from which on XLA is the default


def bucket(length: int) -> int:
    """Return the size that ``length`` is padded to."""
    for size in SMALL_BUCKETS:
        if length <= size:
            return size
    return -(-length // BUCKET) * BUCKET


class State(NamedTuple):
    """What a loop carries from step to step."""

    search: Single | Beams
    cache: KeyValueCache | tuple[()]
    history: Tensor  # (steps, R, V) processed scores, or empty


class Prompt(NamedTuple):
    """What stays the same during a loop."""

    mask: Tensor  # (R, C)
    extra: dict[str, Tensor]
    bounds: Bounds
    seed: Tensor  # (2,)


class Generator:
    """The compiled loop for one set of options.

    Args:
        model: The model.
        plan: The options; its lengths are not looked at.
        room: Columns for new tokens.
        processors: More functions of ids and scores.
        jit_compile: Compile with XLA.
        fixed: What the model takes at every step besides tensors.
    """

    def __init__(
        self,
        model: Any,
        plan: GenerationPlan,
        room: int,
        processors: tuple[LogitsProcessor, ...],
        jit_compile: bool,
        fixed: dict[str, Any],
    ):
        self.model = model
        self.plan = plan
        self.room = room
        self.processors = processors
        self.fixed = fixed
        self.times = plan.num_beams if plan.num_beams > 1 else plan.num_return_sequences
        compiled = {"autograph": False, "jit_compile": jit_compile}
        # Functions of their own: TensorFlow takes methods for one that is traced again and again.
        self.begin = tf.function(lambda *args: self._begin(*args), **compiled)
        self.proceed = tf.function(lambda *args: self._loop(*args), **compiled)

    @property
    def traces(self) -> int:
        """How often a graph was made."""
        return sum(f.experimental_get_tracing_count() for f in (self.begin, self.proceed))

    def _begin(self, ids: Tensor, prompt: Prompt, until: Tensor) -> tuple[State, Prompt]:
        """Run the prompts (B, P) once per batch row, then repeat rows and go on to ``until``."""
        plan, times = self.plan, self.times
        length = ids.shape[1]
        width, mask = length + self.room, prompt.mask[:, :length]
        cache: KeyValueCache | tuple[()] = ()
        if plan.use_cache:
            logits, past = self.model.next_logits(ids, mask, None, self._extra(prompt))
            cache = self.model.cache_after_prompt(past, width, times)
        else:
            logits = self.model.logits_after(ids, length, mask, self._extra(prompt))
        extra = {
            name: repeat(value, times) if name in PER_ROW_ARGUMENTS else value
            for name, value in prompt.extra.items()
        }
        prompt = prompt._replace(mask=repeat(prompt.mask, times), extra=extra)
        if plan.num_beams > 1:
            search: Single | Beams = Beams.start(plan, ids, self.room)
        else:
            search = Single.start(plan, repeat(ids, times), self.room)
        logits = repeat(logits, times)
        history = tf.zeros([self.room if plan.output_scores else 0, *logits.shape])
        state = self._advance(State(search, cache, history), logits, prompt)
        return self._loop(state, prompt, until), prompt

    def _extra(self, prompt: Prompt) -> dict[str, Any]:
        return {**prompt.extra, **self.fixed}

    def _loop(self, state: State, prompt: Prompt, until: Tensor) -> State:
        def goes_on(*state):
            search = State(*state).search
            return (search.length < until) & ~tf.reduce_all(search.done)

        def body(*state):
            return tuple(self._step(State(*state), prompt))

        return State(*tf.while_loop(goes_on, body, tuple(state), parallel_iterations=1))

    def _step(self, state: State, prompt: Prompt) -> State:
        """Run the model on the newest tokens and choose the next."""
        search, cache, _ = state
        if not self.plan.use_cache:
            logits = self.model.logits_after(
                search.rows, search.length, prompt.mask, self._extra(prompt)
            )
            return self._advance(state, logits, prompt)
        if isinstance(search, Beams) and cache:
            cache = cache.reorder(search.last_rows)
        newest = tf.gather(search.rows, [search.length - 1], axis=1)
        logits, cache = self.model.next_logits(newest, prompt.mask, cache, self._extra(prompt))
        return self._advance(state._replace(cache=cache), logits, prompt)

    def _advance(self, state: State, logits: Tensor, prompt: Prompt) -> State:
        """Choose the next tokens by the logits (R, V)."""
        plan, search, bounds = self.plan, state.search, prompt.bounds
        scores = tf.nn.log_softmax(logits) if plan.num_beams > 1 else logits
        scores = process(plan, search.rows, scores, search.length, bounds)
        for processor in self.processors:
            scores = processor(search.rows[:, bounds.first : search.length], scores)
        if plan.do_sample:
            scores = warp(plan, scores)
        history = state.history
        if plan.output_scores:
            step = tf.reshape(search.length - bounds.prompt, [1, 1])
            history = tf.tensor_scatter_nd_update(history, step, scores[None])
        search = search.step(plan, scores, bounds, prompt.seed)
        return state._replace(search=search, history=history)


class GenerationMixin:
    """Gives ``generate`` to a causal model that has ``model``, ``project`` and a cache.

    Others say in ``next_logits`` and ``logits_after`` how they are run.
    """

    config: Any
    generation_config: GenerationConfig
    generation_arguments: tuple[str, ...] = MODEL_ARGUMENTS
    xla_pays: float = XLA_PAYS

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        inputs: Tensor | None = None,
        tokenizer: Any = None,
        logits_processor: Sequence[LogitsProcessor] = (),
        stopping_criteria: Sequence[StoppingCriterion] = (),
        jit_compile: bool | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continue prompts.

        Args:
            input_ids: (B, C) prompts, padded on the left; ``bos_token_id`` alone by default.
            attention_mask: (B, C); by default ``pad_token_id`` marks padding.
            generation_config: Options; by default those of the checkpoint.
            inputs: Another name of ``input_ids``.
            tokenizer: Decodes for ``stop_strings``.
            logits_processor: Functions of ids (R, C) and scores (R, V) that return scores; they
                become part of the graph. Not with ``jit_compile``.
            stopping_criteria: Functions of ids (R, C) and scores (``None`` unless
                ``output_scores``) that say whether to stop, for all rows or (R,) row by row.
            jit_compile: Compile with XLA. By default for large models only: there a step is a
                third cheaper, and in small ones compiling would take longer than it saves.
            **kwargs: Options by name (see ``GenerationConfig``) and what the model takes at every
                step: ``generation_arguments`` lists it.

        Returns:
            (B * num_return_sequences, length) ids with the prompts, or a ``GenerateOutput``.

        Raises:
            ConfigError: For options that cannot be.
            XlmfamError: For inputs that cannot be, and within a ``tf.function``.
        """
        if not tf.executing_eagerly():
            raise XlmfamError(
                "generate compiles its loop itself: call it outside of tf.function, with "
                "jit_compile=True for XLA"
            )
        extra = {name: kwargs.pop(name) for name in self.generation_arguments if name in kwargs}
        extra = {name: value for name, value in extra.items() if value is not None}
        options = self.generation_config.or_given(generation_config, **kwargs)
        ids = self._prompt(inputs if input_ids is None else input_ids, options)
        plan = plan_generation(options, ids.shape[1], self.config.vocab_size)
        plan = dataclasses.replace(plan, use_cache=plan.use_cache and self.generates_with_cache)
        if attention_mask is not None:
            attention_mask = tf.convert_to_tensor(attention_mask)
        check_shape("attention_mask", attention_mask, tuple(ids.shape))
        mask = padding_of(ids, attention_mask, plan)
        if logits_processor and jit_compile:
            raise XlmfamError("logits_processor sees ids of changing length: not with jit_compile")
        stops = list(stopping_criteria)
        if options.stop_strings:
            stops.append(StopStrings(options.stop_strings, tokenizer, ids.shape[1]))
        if jit_compile is None:
            large = self.num_parameters() >= self.xla_pays  # type: ignore[attr-defined]
            jit_compile = large and not logits_processor
        extra = self.prepare_generation(plan, ids, mask, extra)
        if plan.takes_the_best and not logits_processor and not stops:
            extra = self.prepare_greedy(extra)
        fixed = {name: extra.pop(name) for name in list(extra) if not tf.is_tensor(extra[name])}
        generator = self._generator(plan, tuple(logits_processor), jit_compile, fixed)
        output = run(generator, plan, ids, mask, extra, stops, seed_tensor(options.seed))
        return output if options.return_dict_in_generate else output.sequences

    @property
    def generates_with_cache(self) -> bool:
        """Whether keys and values of earlier tokens stay as they are when one is added."""
        return True

    def prepare_generation(
        self,
        plan: GenerationPlan,  # noqa: ARG002
        prompt: Tensor,  # noqa: ARG002
        mask: Tensor,  # noqa: ARG002
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the ``generation_arguments`` as tensors; models check and complete them.

        What is no tensor becomes part of the graph, and has to be hashable.

        Args:
            plan: The options.
            prompt: (B, C).
            mask: (B, C).
            extra: What the caller gave.
        """
        return {name: tf.convert_to_tensor(value) for name, value in extra.items()}

    def prepare_greedy(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments where nobody looks but at the best score; models may extend this."""
        return extra

    def next_logits(
        self, ids: Tensor, mask: Tensor, cache: KeyValueCache | None, extra: dict[str, Tensor]
    ) -> tuple[Tensor, Any]:
        """Return the scores (R, V) of the token that follows, and keys and values.

        Args:
            ids: (R, S): the prompts, or behind a cache the newest token.
            mask: (R, S) of the prompts, or (R, C) of all columns of the cache.
            cache: Keys and values of the tokens before; ``None`` for prompts, whose keys and
                values are returned as tuples, see ``xlmfam.tf.cache``.
            extra: What ``prepare_generation`` returned.
        """
        output = self(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            last_logits_only=True,
            return_dict=True,
            training=False,
            **extra,
        )
        return tf.cast(output.logits[:, -1], tf.float32), output.past_key_values

    def cache_after_prompt(self, past: Any, width: int, times: int) -> Any:
        """Return the cache of R rows for the loop; it has ``reorder`` for beams.

        Args:
            past: What ``next_logits`` returned for the prompts.
            width: Columns of prompts and new tokens together.
            times: Continuations per prompt.
        """
        return cache_from_past(past, width, times)

    def logits_after(
        self, ids: Tensor, length: Tensor, mask: Tensor, extra: dict[str, Tensor]
    ) -> Tensor:
        """Return the scores (R, V) of what follows the first ``length`` columns, with no cache.

        Args:
            ids: (R, C); columns not yet filled are in the future.
            length: Number of columns that are filled.
            mask: (R, C).
            extra: What ``prepare_generation`` returned.
        """
        output = self.model(  # type: ignore[attr-defined]
            input_ids=ids, attention_mask=mask, use_cache=False, training=False, **extra
        )
        hidden = tf.gather(output.last_hidden_state, length - 1, axis=1)
        return tf.cast(self.project(hidden), tf.float32)  # type: ignore[attr-defined]

    def generation_traces(self) -> int:
        """Return how many graphs ``generate`` has made so far."""
        return sum(generator.traces for generator in self._generators().values())

    def forget_traces(self) -> None:
        """Drop the graphs that ``generate`` and Keras have made."""
        super().forget_traces()  # type: ignore[misc]
        self.__dict__["_generation_graphs"] = Graphs()

    def _generators(self) -> dict[Any, Generator]:
        return self.__dict__.setdefault("_generation_graphs", Graphs()).by_options

    def _generator(
        self,
        plan: GenerationPlan,
        processors: tuple[LogitsProcessor, ...],
        jit_compile: bool,
        fixed: dict[str, Any],
    ) -> Generator:
        room = bucket(plan.new_tokens)
        # Lengths are tensors: calls that differ in nothing else share a graph.
        plan = dataclasses.replace(plan, prompt_length=0, max_length=0, min_length=0)
        key = (plan, room, processors, jit_compile, tuple(fixed.items()))
        known = self._generators()
        if key not in known:
            known[key] = Generator(self, plan, room, processors, jit_compile, fixed)
        return known[key]

    def _prompt(self, input_ids: Any, options: GenerationConfig) -> Tensor:
        """Return (B, C) ids, checked."""
        if input_ids is None:
            if options.bos_token_id is None:
                raise XlmfamError("give input_ids: there is no bos_token_id to begin with")
            return tf.constant([[options.bos_token_id]])
        ids = tf.convert_to_tensor(input_ids)
        if len(ids.shape) != 2 or 0 in ids.shape:
            raise XlmfamError(
                f"input_ids must be (batch, sequence), not empty; got {tuple(ids.shape)}"
            )
        self.check_ids("input_ids", ids)  # type: ignore[attr-defined]
        return ids


class Graphs:
    """Holds generators where Keras does not look for weights."""

    def __init__(self) -> None:
        self.by_options: dict[Any, Any] = {}


def padding_of(ids: Tensor, attention_mask: Tensor | None, plan: GenerationPlan) -> Tensor:
    """Return the (B, C) mask of the prompts, int32."""
    if attention_mask is None:
        attention_mask = tf.ones_like(ids)
        if plan.pad_token_id not in plan.eos_token_id:
            attention_mask = ids != plan.pad_token_id
    mask = tf.cast(tf.cast(attention_mask, tf.bool), tf.int32)
    if not bool(tf.reduce_all(tf.reduce_any(mask > 0, -1))):
        raise XlmfamError("attention_mask masks a whole prompt")
    if not bool(tf.reduce_all(mask[:, -1] > 0)):
        raise XlmfamError(
            "prompts of unequal length must be padded on the left: padding_side='left'"
        )
    return mask


def seed_tensor(seed: int | None) -> Tensor:
    """Return (2,) integers made from ``seed``, or drawn from TensorFlow's generator."""
    if seed is None:
        return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
    return tf.constant([seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF])


def run(
    generator: Generator,
    plan: GenerationPlan,
    ids: Tensor,
    mask: Tensor,
    extra: dict[str, Tensor],
    stops: list[StoppingCriterion],
    seed: Tensor,
) -> GenerateOutput:
    """Pad the prompts to their bucket, run the loop, and take the padding off again."""
    first = bucket(ids.shape[1]) - ids.shape[1]
    bounds = Bounds(
        *(
            tf.constant(first + length)
            for length in (0, plan.prompt_length, plan.max_length, plan.min_length)
        )
    )
    buffer = tf.pad(tf.cast(ids, tf.int32), [[0, 0], [first, 0]], constant_values=plan.pad_token_id)
    extra = {
        name: tf.pad(value, [[0, 0], [first, 0]]) if name in PER_TOKEN_ARGUMENTS else value
        for name, value in extra.items()
    }
    mask = tf.pad(mask, [[0, 0], [first, 0]])
    mask = tf.pad(mask, [[0, 0], [0, generator.room]], constant_values=1)
    prompt = Prompt(mask, extra, bounds, seed)
    until = bounds.prompt + 1 if stops else bounds.longest
    state, prompt = generator.begin(buffer, prompt, until)
    if stops:
        state = run_to_stop(generator, state, prompt, stops)
    output = state.search.results(plan, bounds)
    output["sequences"] = tf.cast(output.sequences, ids.dtype)
    if plan.output_scores:
        steps = int(state.search.length - bounds.prompt)
        output["scores"] = tuple(tf.unstack(state.history[:steps]))
    return output


def run_to_stop(
    generator: Generator, state: State, prompt: Prompt, stops: list[StoppingCriterion]
) -> State:
    """Go on one step at a time and ask after each whether to stop."""
    bounds = prompt.bounds
    while True:
        search = state.search
        ids = search.rows[:, int(bounds.first) : int(search.length)]
        scores = None
        if generator.plan.output_scores:
            scores = state.history[int(search.length - bounds.prompt) - 1]
        stopped = [tf.cast(stop(ids, scores), tf.bool) for stop in stops]
        if isinstance(search, Single):
            for rows in stopped:
                search = search._replace(finished=search.finished | rows)
            state = state._replace(search=search)
            over = bool(tf.reduce_all(search.finished))
        else:
            over = any(bool(tf.reduce_all(rows)) for rows in stopped)
            over = over or bool(tf.reduce_all(search.done))
        if over or search.length >= bounds.longest:
            return state
        state = generator.proceed(state, prompt, search.length + 1)


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
        new = ids[:, self.prompt_length :].numpy().tolist()
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in new]
        return tf.constant([any(string in text for string in self.strings) for text in texts])
