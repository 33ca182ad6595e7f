"""What the demo's report is made of, and what counts as passed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HIDDEN = "____"  # stands for a hidden word
SAME_CHANCE = 1e-4  # probabilities this close are the same


@dataclass(frozen=True)
class LossCurve:
    """The training loss of every step.

    Attributes:
        losses: one value per step, in nats per token.
        vocab_size: a model that knows nothing has the loss ``log(vocab_size)``.
        goal: the run counts as learned when the final loss is at most this; no goal, no judgement.
        evaluated: mean loss over the whole text after training; by default the last step's.
    """

    losses: Sequence[float]
    vocab_size: int
    goal: float | None = None
    evaluated: float | None = None

    @property
    def final(self) -> float:
        """The loss that counts; NaN when there was no step."""
        if not self.losses:
            return math.nan
        return self.losses[-1] if self.evaluated is None else self.evaluated

    @property
    def guessing(self) -> float:
        """The loss of a model that knows nothing."""
        return math.log(self.vocab_size)

    @property
    def passed(self) -> bool:
        """Whether the run ended finite and at the goal."""
        return math.isfinite(self.final) and (self.goal is None or self.final <= self.goal)


@dataclass(frozen=True)
class Heatmap:
    """Largest differences by part of the model (rows) and pair of backends (columns).

    ``values[row][column]`` is None where a pair was not compared.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    tolerance: float

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(
            len(line) != len(self.columns) for line in self.values
        ):
            raise ValueError(
                f"values must be {len(self.rows)} rows of {len(self.columns)} numbers, as many as "
                f"rows and columns are named"
            )

    def known(self) -> list[float]:
        """All values that were compared."""
        return [v for line in self.values for v in line if v is not None]

    @property
    def largest(self) -> float:
        """The largest difference; NaN if any is, for it is worse than every number."""
        known = self.known()
        return math.nan if any(map(math.isnan, known)) else max(known, default=math.nan)

    def failures(self) -> list[tuple[str, str, float]]:
        """Row, column and value of every difference beyond the tolerance, NaN included."""
        return [
            (row, column, value)
            for row, line in zip(self.rows, self.values, strict=True)
            for column, value in zip(self.columns, line, strict=True)
            if value is not None and not value <= self.tolerance
        ]

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing is beyond the tolerance."""
        return bool(self.known()) and not self.failures()


@dataclass(frozen=True)
class ChainStep:
    """One stop of the conversion chain; ``exact``: its weights equal the first's bit for bit."""

    framework: str
    file: str
    checksum: str
    exact: bool
    seconds: float | None = None


@dataclass(frozen=True)
class Generation:
    """What each backend wrote after one prompt. ``outputs`` maps the backend's name to its text."""

    prompt: str
    outputs: Mapping[str, str]
    language: str = ""

    @property
    def equal(self) -> bool:
        """Whether there are outputs and all of them are the same."""
        return len(set(self.outputs.values())) == 1


@dataclass(frozen=True)
class Guess:
    """A word for a hidden one, and its probability."""

    word: str
    chance: float


@dataclass(frozen=True)
class Filling:
    """What each backend guessed for a hidden word.

    Attributes:
        text: The sentence, with ``HIDDEN`` for each hidden word.
        guesses: Best guesses, best first, by the backend's name.
        language: Of the sentence.
        answer: The word that was hidden, where one was; the text may allow of others.
    """

    text: str
    guesses: Mapping[str, Sequence[Guess]]
    language: str = ""
    answer: str = ""

    @property
    def equal(self) -> bool:
        """Whether all backends guess the same words, with the same chances but for rounding."""
        first, *others = self.guesses.values() or [[]]
        return bool(first) and all(_same_guesses(first, other) for other in others)


def _same_guesses(one: Sequence[Guess], other: Sequence[Guess]) -> bool:
    return [g.word for g in one] == [g.word for g in other] and all(
        abs(a.chance - b.chance) < SAME_CHANCE for a, b in zip(one, other, strict=True)
    )


@dataclass(frozen=True)
class Score:
    """How many of several questions a trained model answers right.

    It counts as learned when at least ``goal`` of them are.

    Attributes:
        label: In a word or two, what it did.
        what: What was asked for, as in "5 of 7 hidden words".
        right: Number of right answers.
        asked: Number of questions.
        goal: Share of right answers that is enough.
        check: What it shows.
    """

    label: str
    what: str
    right: int
    asked: int
    goal: float = 0.8
    check: str = "learned"

    @property
    def passed(self) -> bool:
        """Whether enough were right."""
        return self.asked > 0 and self.right >= self.goal * self.asked


@dataclass(frozen=True)
class Addition:
    """A language that a trained model got afterwards.

    Attributes:
        language: Its name.
        beginning: What its adapters began as.
        learned: Number of values that learned.
        parameters: Number of values of the whole model.
        seconds: How long it took.
        before: Mean loss on its text, with the adapters as they began.
        after: The same when they had learned.
        others: Mean loss of the languages that the model was trained with.
        untouched: Whether everything else is bit for bit what it was.
        goal: Loss that counts as learned.
    """

    language: str
    beginning: str
    learned: int
    parameters: int
    seconds: float
    before: float
    after: float
    others: float
    untouched: bool
    goal: float

    @property
    def share(self) -> float:
        """The part of the model that learned."""
        return self.learned / self.parameters

    @property
    def passed(self) -> bool:
        """Whether the language was learned and nothing else changed."""
        return self.untouched and self.after <= self.goal


@dataclass(frozen=True)
class Reading:
    """How well each backend predicts a long text, with what it remembers and without.

    Attributes:
        text: Which one, as in "perplexity of unseen text".
        tokens: Number of tokens that were predicted.
        segment: Tokens of a call.
        memory: Tokens that are remembered from one call to the next.
        remembering: Mean loss by the backend's name.
        forgetful: The same where nothing is remembered.
        tolerance: Losses that are this close, relatively, are the same.
    """

    text: str
    tokens: int
    segment: int
    memory: int
    remembering: Mapping[str, float]
    forgetful: Mapping[str, float]
    tolerance: float

    @property
    def with_memory(self) -> float:
        """The perplexity, of the first backend."""
        return perplexity(next(iter(self.remembering.values()), math.nan))

    @property
    def without(self) -> float:
        """The perplexity where nothing is remembered, of the first backend."""
        return perplexity(next(iter(self.forgetful.values()), math.nan))

    @property
    def difference(self) -> float:
        """Largest difference of two backends, relative to the loss; NaN if one has none."""
        parts = [_spread(list(losses.values())) for losses in (self.remembering, self.forgetful)]
        return math.nan if any(map(math.isnan, parts)) else max(parts)

    @property
    def equal(self) -> bool:
        """Whether all backends have the same losses, but for rounding."""
        return self.remembering.keys() == self.forgetful.keys() and (
            self.difference <= self.tolerance
        )

    @property
    def helps(self) -> bool:
        """Whether memory makes the text easier for every backend."""
        return bool(self.remembering) and all(
            loss < self.forgetful.get(name, math.nan) for name, loss in self.remembering.items()
        )


def perplexity(loss: float) -> float:
    """The number of words that are as hard to choose from, were they all alike."""
    return math.inf if loss > 700 else math.exp(loss)


def _spread(losses: Sequence[float]) -> float:
    """The largest difference relative to the largest value; NaN where there is none."""
    if not losses or not all(map(math.isfinite, losses)):
        return math.nan
    return (max(losses) - min(losses)) / (max(map(abs, losses)) or 1.0)


@dataclass(frozen=True)
class Timing:
    """How long one step took."""

    label: str
    seconds: float


@dataclass(frozen=True)
class FamilySection:
    """Everything the report says about one model family. Parts that are empty are left out."""

    name: str
    parameters: int
    description: str = ""
    loss: LossCurve | None = None
    scores: Sequence[Score] = ()
    heatmap: Heatmap | None = None
    chain: Sequence[ChainStep] = ()
    generations: Sequence[Generation] = ()
    fillings: Sequence[Filling] = ()
    addition: Addition | None = None
    readings: Sequence[Reading] = ()
    timings: Sequence[Timing] = ()

    def checks(self) -> dict[str, bool]:
        """Name and outcome of each check that this section makes."""
        checks = {}
        if self.loss:
            checks["trained"] = self.loss.passed
        for score in self.scores:
            checks[score.check] = score.passed
        if self.heatmap:
            checks["backends agree"] = self.heatmap.passed
        if self.chain:
            checks["conversions are bit-exact"] = all(step.exact for step in self.chain)
        if self.generations:
            checks["same text everywhere"] = all(g.equal for g in self.generations)
        if self.readings:
            checks["same perplexity everywhere"] = all(r.equal for r in self.readings)
            checks["memory helps"] = all(r.helps for r in self.readings)
        if self.addition:
            checks["learns a language afterwards"] = self.addition.after <= self.addition.goal
            checks["leaves the others as they were"] = self.addition.untouched
        if self.fillings:
            checks["same guesses everywhere"] = all(f.equal for f in self.fillings)
        return checks

    @property
    def passed(self) -> bool:
        """Whether every check of the section holds."""
        return all(self.checks().values())


@dataclass(frozen=True)
class ReportData:
    """A whole report."""

    title: str
    sections: Sequence[FamilySection]
    subtitle: str = ""
    created: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every section passed; a report with no section proves nothing."""
        return bool(self.sections) and all(section.passed for section in self.sections)
