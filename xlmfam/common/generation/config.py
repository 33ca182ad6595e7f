"""The options of ``generate`` and what each of them means, for all backends."""

from __future__ import annotations

import copy
import json
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmfam.common.errors import ConfigError

GENERATION_CONFIG_NAME = "generation_config.json"

DEFAULTS: dict[str, Any] = {
    # length
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "early_stopping": False,
    "stop_strings": None,
    # strategy
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "seed": None,
    # scores
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    # results
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    # tokens
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "decoder_start_token_id": None,
}
# Options of transformers that xlmfam does not have, with the value that switches them off.
REFUSED: dict[str, Any] = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "force_words_ids": None,
    "constraints": None,
    "guidance_scale": None,
    "sequence_bias": None,
    "low_memory": None,
    "max_time": None,
}


class GenerationConfig:
    """The options of ``generate``, read from and written to ``generation_config.json``.

    Args:
        max_length: Longest result in tokens, prompt included; ``max_new_tokens`` overrides it.
        max_new_tokens: Most tokens to add to the prompt.
        min_length: No end of sequence before this many tokens, prompt included.
        min_new_tokens: No end of sequence before this many new tokens.
        early_stopping: For beams: ``True`` stops at ``num_beams`` finished ones, ``False`` when
            the best running beam cannot overtake at its present length, ``"never"`` when it
            cannot at any length.
        stop_strings: Strings that end a sequence once its new text contains one; needs
            ``tokenizer=`` in the call.
        do_sample: Draw from the distribution instead of taking the best token.
        num_beams: Width of beam search; 1 is none.
        use_cache: Keep keys and values between steps (``False`` recomputes; slow).
        seed: Makes sampling repeatable.
        temperature: Divides the scores.
        top_k: Keep the ``top_k`` best tokens; 0 or ``None`` keeps all.
        top_p: Keep the smallest set of best tokens with this probability (Holtzman et al. 2019).
        typical_p: Keep the most typical tokens with this probability (Meister et al. 2022).
        repetition_penalty: Divides (multiplies, if negative) scores of tokens already there
            (Keskar et al. 2019).
        length_penalty: Beam scores are divided by ``length ** length_penalty``.
        no_repeat_ngram_size: No n-gram of this size occurs twice.
        bad_words_ids: Token sequences that may not be generated.
        forced_bos_token_id: First generated token where the prompt has one token.
        forced_eos_token_id: Last token when ``max_length`` is reached.
        suppress_tokens: Tokens that are never generated.
        begin_suppress_tokens: Tokens that may not be generated first.
        exponential_decay_length_penalty: ``(start, factor)``: after ``start`` new tokens the
            score of the end grows by ``factor`` per token.
        renormalize_logits: Make scores log-probabilities again after processing.
        remove_invalid_values: Replace NaN and infinite scores.
        num_return_sequences: Sequences per prompt.
        output_scores: Return the scores of every step.
        return_dict_in_generate: Return a ``GenerateOutput`` instead of token ids.
        pad_token_id: Fills rows that ended early.
        bos_token_id: The prompt where none is given.
        eos_token_id: One id or several that end a sequence.
        decoder_start_token_id: Kept for other tools.
        **kwargs: Unknown keys are kept and written back, never acted on.

    Raises:
        ConfigError: For options that contradict themselves or that xlmfam does not have.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the options of DEFAULTS

    def __init__(self, **kwargs: Any):
        for name, default in DEFAULTS.items():
            setattr(self, name, copy.deepcopy(kwargs.pop(name, default)))
        self.unknown = kwargs
        self.validate()

    def validate(self) -> None:
        """Check every option; see the class for what is raised."""
        for name, off in REFUSED.items():
            if self.unknown.get(name, off) not in (off, None):
                raise ConfigError(f"{name}={self.unknown[name]!r} is not supported by xlmfam")
        for name in ("max_new_tokens", "num_beams", "num_return_sequences", "max_length"):
            _integer(name, getattr(self, name), least=1, optional=name == "max_new_tokens")
        for name in ("min_length", "min_new_tokens", "no_repeat_ngram_size", "top_k"):
            _integer(name, getattr(self, name), least=0, optional=True)
        if not _is_number(self.temperature) or self.temperature <= 0:
            raise ConfigError(
                f"temperature must be a positive number, got {self.temperature!r}; "
                "for the best token at every step use do_sample=False"
            )
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value <= 1):
                raise ConfigError(f"{name} must lie in (0, 1], got {value!r}")
        if not _is_number(self.repetition_penalty) or self.repetition_penalty <= 0:
            raise ConfigError(
                f"repetition_penalty must be positive, got {self.repetition_penalty!r}"
            )
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}"
            )
        if not _is_number(self.length_penalty):
            raise ConfigError(f"length_penalty must be a number, got {self.length_penalty!r}")
        if self.seed is not None and not (_is_integer(self.seed) and abs(self.seed) < 2**63):
            raise ConfigError(f"seed must be an integer of 64 bits, got {self.seed!r}")
        decay: Any = self.exponential_decay_length_penalty
        if decay is not None and not (
            isinstance(decay, list | tuple) and len(decay) == 2 and all(map(_is_number, decay))
        ):
            raise ConfigError(
                f"exponential_decay_length_penalty must be (start, factor), got {decay!r}"
            )
        for words in self.bad_words_ids or ():
            if not isinstance(words, Sequence) or isinstance(words, str) or not words:
                raise ConfigError(
                    f"bad_words_ids must be a list of non-empty lists of ids, got {words!r}"
                )
        self._validate_returned()

    def _validate_returned(self) -> None:
        if self.num_return_sequences > 1 and not self.do_sample and self.num_beams == 1:
            raise ConfigError(
                "num_return_sequences > 1 needs do_sample=True or num_beams > 1: greedy "
                "search has one result"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ConfigError(
                f"num_return_sequences ({self.num_return_sequences}) cannot exceed num_beams "
                f"({self.num_beams})"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return every option and unknown key."""
        return copy.deepcopy({**self.unknown, **{name: getattr(self, name) for name in DEFAULTS}})

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what ``generation_config.json`` holds: what differs from the defaults."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in DEFAULTS or value != DEFAULTS[name]
        }

    def to_json_string(self) -> str:
        """Return the text of ``generation_config.json``."""
        return json.dumps(self.to_diff_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write ``generation_config.json`` into ``save_directory``."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{GENERATION_CONFIG_NAME}.tmp"
        beside.write_text(self.to_json_string(), encoding="utf-8")
        beside.replace(folder / GENERATION_CONFIG_NAME)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **overrides: Any) -> GenerationConfig:
        """Build from the data of a ``generation_config.json`` and ``overrides``."""
        return cls(**{**data, **overrides})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name: str | os.PathLike, **kwargs: Any
    ) -> GenerationConfig:
        """Read ``generation_config.json`` of a folder or hub repository.

        Raises:
            ConfigError: When the file is missing or not valid.
        """
        from xlmfam.common.checkpoints.locate import resolve_file
        from xlmfam.common.configs.base import parse_config, pop_hub_arguments

        hub = pop_hub_arguments(kwargs)
        found = resolve_file(os.fspath(pretrained_model_name), GENERATION_CONFIG_NAME, **hub)
        if found is None:
            raise ConfigError(f"{pretrained_model_name} has no {GENERATION_CONFIG_NAME}")
        return cls.from_dict(parse_config(found), **kwargs)

    @classmethod
    def from_model_config(cls, config: Any) -> GenerationConfig:
        """Build from the generation options that older files keep in ``config.json``."""
        data = config.to_dict()
        names = [*DEFAULTS, *REFUSED]
        said = {name: data[name] for name in names if data.get(name) is not None}
        return cls(**{name: value for name, value in said.items() if value != REFUSED.get(name)})

    def or_given(self, given: Any, **kwargs: Any) -> GenerationConfig:
        """Return what ``generate(generation_config=given, **kwargs)`` goes by.

        Args:
            given: A ``GenerationConfig`` to use instead of this one, or ``None``.
            **kwargs: Options to replace.

        Raises:
            ConfigError: When ``given`` is something else, or for options that cannot be.
        """
        if given is not None and not isinstance(given, GenerationConfig):
            raise ConfigError(
                f"generation_config must be a GenerationConfig, got a {type(given).__name__}"
            )
        return (self if given is None else given).update(**kwargs)

    def update(self, **kwargs: Any) -> GenerationConfig:
        """Return a copy with some options replaced.

        Raises:
            ConfigError: Naming an option that ``generate`` does not have.
        """
        unknown = [name for name in kwargs if name not in DEFAULTS and name not in REFUSED]
        if unknown:
            raise ConfigError(
                f"generate has no option {', '.join(sorted(unknown))}; it has "
                f"{', '.join(sorted(DEFAULTS))}"
            )
        return type(self)(**{**self.to_dict(), **kwargs})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"GenerationConfig {self.to_json_string()}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _integer(name: str, value: Any, least: int, optional: bool) -> None:
    if value is None and optional:
        return
    if not _is_integer(value) or value < least:
        raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}")


@dataclass(frozen=True)
class GenerationPlan:
    """The options of one call, checked and complete; hashable, so that loops compile per plan.

    Lengths count tokens, prompt included.
    """

    prompt_length: int
    max_length: int
    min_length: int
    do_sample: bool
    num_beams: int
    num_return_sequences: int
    early_stopping: bool | str
    length_penalty: float
    temperature: float
    top_k: int
    top_p: float
    typical_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    bad_words_ids: tuple[tuple[int, ...], ...]
    forced_bos_token_id: int | None
    forced_eos_token_id: tuple[int, ...]
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]
    exponential_decay_length_penalty: tuple[int, float] | None
    renormalize_logits: bool
    remove_invalid_values: bool
    eos_token_id: tuple[int, ...]
    pad_token_id: int
    use_cache: bool
    output_scores: bool

    @property
    def new_tokens(self) -> int:
        """Most tokens to add."""
        return self.max_length - self.prompt_length

    @property
    def takes_the_best(self) -> bool:
        """Whether each token is the one with the best score, and no option changes scores."""
        changes = (
            self.do_sample,
            self.num_beams > 1,
            self.output_scores,
            self.min_length > self.prompt_length,
            self.repetition_penalty != 1.0,
            self.no_repeat_ngram_size,
            self.bad_words_ids,
            self.forced_bos_token_id is not None,
            self.forced_eos_token_id,
            self.suppress_tokens,
            self.begin_suppress_tokens,
            self.exponential_decay_length_penalty is not None,
            self.remove_invalid_values,
        )
        return not any(changes)


def ids(name: str, value: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return option ``name``, which is ``None``, one id or several, as a tuple.

    Raises:
        ConfigError: When it is something else.
    """
    if value is None:
        return ()
    try:
        return (operator.index(value),)  # type: ignore[arg-type]
    except TypeError:
        pass
    try:
        return tuple(operator.index(item) for item in value)  # type: ignore[union-attr]
    except TypeError:
        raise ConfigError(f"{name} must be one id or a list of ids, got {value!r}") from None


def plan_generation(
    options: GenerationConfig, prompt_length: int, vocab_size: int
) -> GenerationPlan:
    """Resolve the options of one call against its prompt.

    Args:
        options: The options.
        prompt_length: Number of tokens in the (padded) prompt.
        vocab_size: Number of token ids.

    Raises:
        ConfigError: When nothing can be generated, or an id is outside the vocabulary.
    """
    max_length = options.max_length
    if options.max_new_tokens is not None:
        max_length = prompt_length + options.max_new_tokens
    if max_length <= prompt_length:
        raise ConfigError(
            f"the prompt has {prompt_length} tokens and max_length is {max_length}: nothing can "
            "be generated; raise max_length or give max_new_tokens"
        )
    min_length = max(options.min_length or 0, prompt_length + (options.min_new_tokens or 0))
    if min_length > max_length:
        raise ConfigError(f"min_length ({min_length}) exceeds max_length ({max_length})")
    eos = ids("eos_token_id", options.eos_token_id)
    pad = options.pad_token_id
    if pad is None:
        pad = eos[0] if eos else 0
    if not _is_integer(pad):
        raise ConfigError(f"pad_token_id must be one id, got {pad!r}")
    decay = options.exponential_decay_length_penalty
    plan = GenerationPlan(
        prompt_length=prompt_length,
        max_length=max_length,
        min_length=min_length,
        do_sample=bool(options.do_sample),
        num_beams=options.num_beams,
        num_return_sequences=options.num_return_sequences,
        early_stopping=options.early_stopping,
        length_penalty=float(options.length_penalty),
        temperature=float(options.temperature),
        top_k=min(options.top_k or 0, vocab_size),
        top_p=float(options.top_p or 1.0),
        typical_p=float(options.typical_p or 1.0),
        repetition_penalty=float(options.repetition_penalty),
        no_repeat_ngram_size=options.no_repeat_ngram_size or 0,
        bad_words_ids=_bad_words(options.bad_words_ids, eos),
        forced_bos_token_id=options.forced_bos_token_id,
        forced_eos_token_id=ids("forced_eos_token_id", options.forced_eos_token_id),
        suppress_tokens=ids("suppress_tokens", options.suppress_tokens),
        begin_suppress_tokens=ids("begin_suppress_tokens", options.begin_suppress_tokens),
        exponential_decay_length_penalty=decay and (int(decay[0]), float(decay[1])),
        renormalize_logits=bool(options.renormalize_logits),
        remove_invalid_values=bool(options.remove_invalid_values),
        eos_token_id=eos,
        pad_token_id=int(pad),
        use_cache=bool(options.use_cache),
        output_scores=bool(options.output_scores),
    )
    _check_ids(plan, vocab_size)
    return plan


def _bad_words(words: Sequence[Sequence[int]] | None, eos: tuple[int, ...]):
    """Bad words as tuples; the end of a sequence is never a bad word, as documented."""
    every = (ids("a word of bad_words_ids", word) for word in words or ())
    return tuple(word for word in every if not (len(word) == 1 and word[0] in eos))


def _check_ids(plan: GenerationPlan, vocab_size: int) -> None:
    groups = {
        "eos_token_id": plan.eos_token_id,
        "pad_token_id": (plan.pad_token_id,),
        "forced_bos_token_id": ids("forced_bos_token_id", plan.forced_bos_token_id),
        "forced_eos_token_id": plan.forced_eos_token_id,
        "suppress_tokens": plan.suppress_tokens,
        "begin_suppress_tokens": plan.begin_suppress_tokens,
        "bad_words_ids": tuple(token for word in plan.bad_words_ids for token in word),
    }
    for name, tokens in groups.items():
        outside = [token for token in tokens if not 0 <= token < vocab_size]
        if outside:
            raise ConfigError(f"{name} {outside[0]} is outside the vocabulary of {vocab_size} ids")
