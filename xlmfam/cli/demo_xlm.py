"""The demo's XLM: it learns a text some of whose words are hidden, and fills them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmfam.cli import demo_checks as checks
from xlmfam.cli import demo_training as training
from xlmfam.cli import demo_xlm_text as text
from xlmfam.cli.demo_text import read_corpus
from xlmfam.cli.demo_training import Size
from xlmfam.cli.report_data import HIDDEN, FamilySection, Filling, Guess, LossCurve, Score

if TYPE_CHECKING:
    from xlmfam.cli.demo import Steps

FULL = Size(None, 3000, 128, 2, 4, 64, 36, 3e-3, 2.5, 200)
QUICK = Size(10, 900, 64, 2, 4, 22, 60, 6e-3, 2.5, 44)
STEPS = 7
GUESSES = 3
# Nothing is known of this text but its language.
LENGTH = 4
SHOWN_GROUP = 4  # of the corpus: one sentence of each language is shown with a hidden word

Found = list[list[dict[str, Any]]]


def make_config(size: Size, tokenizer: Any, longest: int) -> Any:
    """Return the config of the demo's model."""
    from xlmfam import XLMConfig

    return XLMConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max(64, 2 * longest),
        emb_dim=size.width,
        n_layers=size.layers,
        n_heads=size.heads,
        n_langs=len(tokenizer.lang2id),
        lang2id=tokenizer.lang2id,
        # A text this small is to be learned by heart, so nothing is dropped.
        dropout=0.0,
        attention_dropout=0.0,
        embed_init_std=size.width**-0.5,
        init_std=size.width**-0.5 / 2,
    )


def train(
    config: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    langs: Sequence[int],
    size: Size,
    seed: int,
) -> training.Trained:
    """Train a model on sentences with hidden words.

    Args:
        config: Of the model.
        tokenizer: Knows the mask token.
        rows: The ids of every sentence.
        langs: The id of each one's language.
        size: How long to train.
        seed: Of initial values, shuffling and what is hidden.
    """
    import keras

    from xlmfam.tf import XLMWithLMHeadModel

    keras.utils.set_random_seed(seed)
    model = XLMWithLMHeadModel.from_config(config)

    def make(numbers: list[int], rng: np.random.Generator) -> training.Batch:
        chosen, theirs = [rows[n] for n in numbers], [langs[n] for n in numbers]
        return text.hidden(chosen, theirs, tokenizer, rng)

    return training.train(model, training.batches_of(rows, size.batch, make, seed), size)


def fill(
    backend: str, checkpoint: Path, tokenizer: Any, texts: Sequence[str], langs: Sequence[str]
) -> Found:
    """Return the guesses for the first hidden word of each text in one backend."""
    from xlmfam.conversion.runners import load

    model = load(backend, checkpoint)
    found = model.fill_mask(texts, tokenizer, top_k=GUESSES, lang=langs)
    return [guesses[0] if isinstance(guesses[0], list) else guesses for guesses in found]


def as_filling(
    hidden: str, lang: str, mask: str, found: Mapping[str, Sequence[Any]], answer: str = ""
) -> Filling:
    """Return what the report shows of one text.

    Args:
        hidden: The text with mask tokens.
        lang: Code of its language.
        mask: The mask token.
        found: The guesses of each framework.
        answer: The hidden word.
    """
    guesses = {
        name: [Guess(guess["token_str"], guess["score"]) for guess in best]
        for name, best in found.items()
    }
    return Filling(hidden.replace(mask, HIDDEN), guesses, text.NAMES[lang], answer)


def filled_right(
    riddles: Sequence[text.Riddle], found: Mapping[str, Found], known: set[tuple[int, ...]]
) -> Score:
    """Count the riddles whose best guess, in every framework, makes a sentence of the text."""
    right = sum(
        all(riddle.filled(rows[number][0]["token"]) in known for rows in found.values())
        for number, riddle in enumerate(riddles)
    )
    what = "hidden words, to sentences of its text"
    return Score("Filled in", what, right, len(riddles), 0.65, "fills in hidden words")


def in_language(
    langs: Sequence[str], found: Mapping[str, Found], skipped: int, words: Mapping[str, set[int]]
) -> Score:
    """Count the languages whose sentences begin as guessed from nothing but the language.

    Args:
        langs: Codes of the languages.
        found: The guesses of each framework.
        skipped: Number of texts before those of ``langs``.
        words: First words of the sentences of each language.
    """
    right = sum(
        all(rows[skipped + number][0]["token"] in words[lang] for rows in found.values())
        for number, lang in enumerate(langs)
    )
    what = "languages, by their number alone"
    return Score("Languages", what, right, len(langs), 0.9, "goes by the language")


def run_xlm(folder: Path, size: Size, seed: int, steps: Steps) -> FamilySection:
    """Train, convert, verify and fill in; return what the report says of it."""
    from xlmfam.conversion.runners import FRAMEWORKS

    with steps.step("Training a tokenizer", "tokenizer"):
        sentences = text.with_languages(read_corpus(size.groups))
        tokenizer = text.train_tokenizer(sentences, folder / "model", size.pieces)
        rows = text.training_rows(tokenizer, sentences)
        langs = [tokenizer.lang2id[sentence.lang] for sentence in sentences]
        shown = text.shown_riddles(tokenizer, sentences, SHOWN_GROUP)
        riddles = [*shown, *text.riddles(tokenizer, sentences, size.sampled, seed)]
    with steps.step("Training the model with Keras fit", "Keras fit"):
        config = make_config(size, tokenizer, max(map(len, rows)))
        trained = train(config, tokenizer, rows, langs, size, seed)
        trained.model.save_pretrained(folder / "model")
    with steps.step("Converting through the frameworks", "conversions"):
        chain, last = checks.run_chain(trained.model, folder / "checkpoints", tokenizer)
    with steps.step("Comparing the frameworks", "comparison"):
        heatmap = checks.compare(last, example_batch(rows, langs, tokenizer))
    codes, mask = list(text.CODES.values()), tokenizer.mask_token
    asked = [*(riddle.text for riddle in riddles), *[" ".join([mask] * LENGTH) + "."] * len(codes)]
    of = [*(riddle.lang for riddle in riddles), *codes]
    found: dict[str, Found] = {}
    for backend in checks.BACKENDS:
        name = FRAMEWORKS[backend]
        with steps.step(f"Filling in hidden words in {name}", f"words, {name}"):
            found[name] = fill(backend, last, tokenizer, asked, of)
    answers = [*(riddle.word for riddle in riddles), *[""] * len(codes)]
    fillings = [
        as_filling(asked[i], of[i], mask, {n: rows[i] for n, rows in found.items()}, answers[i])
        for i in range(len(asked))
    ]
    # Few are enough to look at; but what differs is not to be hidden.
    kept = [*range(len(shown)), *range(len(riddles), len(asked))]
    known = {tuple(row) for row in rows}
    return FamilySection(
        name="XLM",
        parameters=trained.model.num_parameters(),
        description=describe(size, len(sentences), tokenizer, fillings),
        loss=LossCurve(trained.losses, len(tokenizer), size.goal, trained.final),
        scores=[
            filled_right(riddles, found, known),
            in_language(codes, found, len(riddles), first_words(rows, sentences)),
        ],
        heatmap=heatmap,
        chain=chain,
        fillings=[f for i, f in enumerate(fillings) if i in kept or not f.equal],
        timings=steps.timings,
    )


def example_batch(
    rows: Sequence[Sequence[int]], langs: Sequence[int], tokenizer: Any, count: int = 6
) -> dict[str, np.ndarray]:
    """Return some sentences with hidden words for the comparison, in several languages."""
    numbers = list(range(0, len(rows), max(1, len(rows) // count)))[:count]
    chosen, theirs = [rows[n] for n in numbers], [langs[n] for n in numbers]
    return text.hidden(chosen, theirs, tokenizer, np.random.default_rng(0))


def first_words(
    rows: Sequence[Sequence[int]], sentences: Sequence[text.Sentence]
) -> dict[str, set[int]]:
    """Return the first tokens of the sentences of each language."""
    words: dict[str, set[int]] = {lang: set() for lang in text.NAMES}
    for row, sentence in zip(rows, sentences, strict=True):
        words[sentence.lang].add(row[1])
    return words


def describe(size: Size, count: int, tokenizer: Any, fillings: Sequence[Filling]) -> str:
    """Return a few sentences on what was done."""
    different = sum(not filling.equal for filling in fillings)
    said = f"{different} differ" if different else "they are the same in the three frameworks"
    return (
        f"{size.layers} layers of width {size.width}, trained for {size.epochs} epochs on "
        f"{count:,} sentences in {len(text.CODES)} languages, some of whose words are hidden, with "
        f"{len(tokenizer):,} byte pairs. It guessed hidden words in {len(fillings)} texts: {said}."
    )
