"""The demo's masked models: text with hidden words, and what is guessed for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmfam.cli import demo_checks as checks
from xlmfam.cli.demo_text import IGNORED, LANGUAGES, padded
from xlmfam.cli.report_data import HIDDEN, Filling, Guess, Score

if TYPE_CHECKING:
    from xlmfam.cli.demo import Steps

GUESSES = 3
_MARKS = ".,;:!?¿¡؟،।«»\"'()"

Found = list[list[dict[str, Any]]]


@dataclass(frozen=True)
class Sentence:
    """A sentence and the code of its language."""

    lang: str
    text: str


@dataclass(frozen=True)
class Riddle:
    """A sentence with one word hidden.

    Attributes:
        lang: Code of its language.
        text: The sentence with the mask token in it.
        word: What is hidden.
        ids: Ids of the whole sentence.
        place: Where the hidden word stands in ``ids``.
    """

    lang: str
    text: str
    word: str
    ids: tuple[int, ...]
    place: int

    def filled(self, token: int) -> tuple[int, ...]:
        """Return the ids with a guess in the place of the word."""
        return (*self.ids[: self.place], token, *self.ids[self.place + 1 :])


@dataclass(frozen=True)
class Questions:
    """What a masked model is asked.

    Attributes:
        riddles: Sentences with one word hidden.
        codes: Codes of the languages in which it has nothing but hidden words to go by.
        blank: A text of hidden words.
    """

    riddles: Sequence[Riddle]
    codes: Sequence[str]
    blank: str

    @property
    def texts(self) -> list[str]:
        """All texts; languages are mixed."""
        return [*(riddle.text for riddle in self.riddles), *[self.blank] * len(self.codes)]

    @property
    def langs(self) -> list[str]:
        """The language of each text."""
        return [*(riddle.lang for riddle in self.riddles), *self.codes]

    @property
    def answers(self) -> list[str]:
        """The hidden word of each text, where it is one."""
        return [*(riddle.word for riddle in self.riddles), *[""] * len(self.codes)]


def with_languages(lines: Sequence[str], codes: Mapping[str, str]) -> list[Sentence]:
    """Return the corpus' sentences in some languages.

    Args:
        lines: The corpus, or its beginning.
        codes: Code of each language to take, by its name.
    """
    named = ((LANGUAGES[index % len(LANGUAGES)], line) for index, line in enumerate(lines))
    return [Sentence(codes[name], line) for name, line in named if name in codes]


def training_rows(tokenizer: Any, sentences: Sequence[Sentence]) -> list[list[int]]:
    """Return the ids of every sentence: ``<s> sentence </s>``."""
    texts, langs = [s.text for s in sentences], [s.lang for s in sentences]
    return tokenizer(texts, **_lang(tokenizer, langs))["input_ids"]


def _lang(tokenizer: Any, lang: Any) -> dict[str, Any]:
    """The argument for the language, of a tokenizer that goes by it."""
    return {"lang": lang} if "lang" in tokenizer.call_options else {}


def hidden(
    rows: Sequence[Sequence[int]], tokenizer: Any, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return a padded batch with some tokens hidden, and labels for these alone.

    How many differs from row to row, up to all of them: then the language is all that is known.

    Args:
        rows: Ids of the sentences.
        tokenizer: Knows the mask token.
        rng: Draws what is hidden.
    """
    batch = padded(rows, tokenizer.pad_token_id)
    ids = batch["input_ids"]
    share = rng.choice([0.3, 0.6, 1.0], (len(rows), 1), p=[0.75, 0.2, 0.05])
    chosen = (rng.random(ids.shape) < share) & ~np.isin(ids, tokenizer.all_special_ids)
    batch["labels"] = np.where(chosen, ids, IGNORED)
    batch["input_ids"] = np.where(chosen, tokenizer.mask_token_id, ids)
    return batch


def first_words(
    rows: Sequence[Sequence[int]], sentences: Sequence[Sentence]
) -> dict[str, set[int]]:
    """Return the first tokens of the sentences of each language."""
    words: dict[str, set[int]] = {}
    for row, sentence in zip(rows, sentences, strict=True):
        words.setdefault(sentence.lang, set()).add(row[1])
    return words


# ---- riddles ------------------------------------------------------------------------------


def riddles(tokenizer: Any, sentences: Sequence[Sentence], count: int, seed: int) -> list[Riddle]:
    """Return ``count`` sentences drawn from the text, each with one word hidden."""
    rng = np.random.default_rng(seed)
    found: list[Riddle] = []
    for index in rng.permutation(len(sentences)):
        order = rng.permutation(len(sentences[index].text.split()))
        made = riddle_of(tokenizer, sentences[index], order.tolist())
        found += [made] if made else []
        if len(found) == count:
            break
    return found


def shown_riddles(tokenizer: Any, sentences: Sequence[Sentence], group: int) -> list[Riddle]:
    """Return one riddle in each language, made of the sentences of one group, near their ends."""
    count = len({sentence.lang for sentence in sentences})
    chosen = sentences[group * count : (group + 1) * count]
    made = (riddle_of(tokenizer, s, range(len(s.text.split()))[::-1]) for s in chosen)
    return [riddle for riddle in made if riddle]


def riddle_of(tokenizer: Any, sentence: Sentence, order: Sequence[int]) -> Riddle | None:
    """Hide one word of a sentence: the first of ``order`` that is a single token, if any is."""
    call = _lang(tokenizer, sentence.lang)
    whole = tokenizer(sentence.text, **call)["input_ids"]
    words = sentence.text.split()
    for index in order:
        word = words[index].strip(_MARKS)
        masked = words[index].replace(word, tokenizer.mask_token) if word else ""
        text = " ".join([*words[:index], masked, *words[index + 1 :]])
        ids = tokenizer(text, **call)["input_ids"]
        place = ids.index(tokenizer.mask_token_id) if tokenizer.mask_token_id in ids else -1
        if place >= 0 and [*ids[:place], whole[place], *ids[place + 1 :]] == whole:
            return Riddle(sentence.lang, text, word, tuple(whole), place)
    return None


# ---- guesses ------------------------------------------------------------------------------


def ask(questions: Questions, checkpoint: Path, tokenizer: Any, steps: Steps) -> dict[str, Found]:
    """Return the guesses for the first hidden word of each text, by framework."""
    from xlmfam.conversion.runners import FRAMEWORKS

    found: dict[str, Found] = {}
    for backend in checks.BACKENDS:
        name = FRAMEWORKS[backend]
        with steps.step(f"Filling in hidden words in {name}", f"words, {name}"):
            found[name] = fill(backend, checkpoint, tokenizer, questions.texts, questions.langs)
    return found


def fill(
    backend: str, checkpoint: Path, tokenizer: Any, texts: Sequence[str], langs: Sequence[str]
) -> Found:
    """Return the guesses for the first hidden word of each text in one backend."""
    from xlmfam.conversion.runners import load

    model = load(backend, checkpoint)
    found = model.fill_mask(texts, tokenizer, top_k=GUESSES, lang=langs)
    return [guesses[0] if isinstance(guesses[0], list) else guesses for guesses in found]


def fillings(
    questions: Questions, found: Mapping[str, Found], mask: str, codes: Mapping[str, str]
) -> list[Filling]:
    """Return what the report shows of each text.

    Args:
        questions: The texts.
        found: The guesses of each framework.
        mask: The mask token.
        codes: Code of each language, by its name.
    """
    names = {code: name for name, code in codes.items()}
    rows = zip(questions.texts, questions.langs, questions.answers, strict=True)
    made = []
    for number, (text, lang, answer) in enumerate(rows):
        guesses = {
            framework: [Guess(guess["token_str"], guess["score"]) for guess in best[number]]
            for framework, best in found.items()
        }
        made.append(Filling(text.replace(mask, HIDDEN), guesses, names[lang], answer))
    return made


def filled_right(
    asked: Sequence[Riddle],
    found: Mapping[str, Found],
    known: set[tuple[int, ...]],
    goal: float = 0.65,
) -> Score:
    """Count the riddles whose best guess, in every framework, makes a sentence of the text."""
    right = sum(
        all(riddle.filled(rows[number][0]["token"]) in known for rows in found.values())
        for number, riddle in enumerate(asked)
    )
    what = "hidden words, to sentences of its text"
    return Score("Filled in", what, right, len(asked), goal, "fills in hidden words")


def in_language(
    langs: Sequence[str],
    found: Mapping[str, Found],
    skipped: int,
    words: Mapping[str, set[int]],
    by: str,
) -> Score:
    """Count the languages whose sentences begin as guessed from nothing but the language.

    Args:
        langs: Codes of the languages.
        found: The guesses of each framework.
        skipped: Number of texts before those of ``langs``.
        words: First words of the sentences of each language.
        by: What tells the model the language.
    """
    right = sum(
        all(rows[skipped + number][0]["token"] in words[lang] for rows in found.values())
        for number, lang in enumerate(langs)
    )
    what = f"languages, by their {by} alone"
    return Score("Languages", what, right, len(langs), 0.9, "goes by the language")


def worth_a_look(made: Sequence[Filling], shown: int) -> list[Filling]:
    """Return the first ``shown`` texts and those without a sentence; few are enough to look at.

    But what differs between the frameworks is not to be hidden.
    """
    return [f for i, f in enumerate(made) if i < shown or not f.answer or not f.equal]


def summary(made: Sequence[Filling]) -> str:
    """Say how the guesses of the frameworks compare."""
    different = sum(not filling.equal for filling in made)
    said = f"{different} differ" if different else "they are the same in the three frameworks"
    return f"It guessed hidden words in {len(made)} texts: {said}."
