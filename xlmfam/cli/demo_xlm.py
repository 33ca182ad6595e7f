"""The demo's XLM: it learns a text some of whose words are hidden, and fills them in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmfam.cli import demo_checks as checks
from xlmfam.cli import demo_masked as masked
from xlmfam.cli import demo_training as training
from xlmfam.cli.demo_text import read_corpus
from xlmfam.cli.demo_training import Size
from xlmfam.cli.demo_xlm_text import CODES, train_tokenizer, with_languages
from xlmfam.cli.report_data import FamilySection, Filling, LossCurve

if TYPE_CHECKING:
    from xlmfam.cli.demo import Steps

FULL = Size(None, 3000, 128, 2, 4, 64, 36, 3e-3, 2.5, 200)
QUICK = Size(10, 900, 64, 2, 4, 22, 60, 6e-3, 2.5, 44)
STEPS = 7
# Nothing is known of this text but its language.
LENGTH = 4
SHOWN_GROUP = 4  # of the corpus: one sentence of each language is shown with a hidden word


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


def batch_of(
    rows: Sequence[Sequence[int]], langs: Sequence[int], tokenizer: Any, rng: np.random.Generator
) -> training.Batch:
    """Return sentences with hidden words, each in its language.

    Args:
        rows: Ids of the sentences.
        langs: Id of each one's language.
        tokenizer: Knows the mask token.
        rng: Draws what is hidden.
    """
    batch = masked.hidden(rows, tokenizer, rng)
    length = batch["input_ids"].shape[1]
    return {**batch, "langs": np.repeat(np.asarray(langs)[:, None], length, axis=1)}


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
        return batch_of([rows[n] for n in numbers], [langs[n] for n in numbers], tokenizer, rng)

    return training.train(model, training.batches_of(rows, size.batch, make, seed), size)


def run_xlm(folder: Path, size: Size, seed: int, steps: Steps) -> FamilySection:
    """Train, convert, verify and fill in; return what the report says of it."""
    with steps.step("Training a tokenizer", "tokenizer"):
        sentences = with_languages(read_corpus(size.groups))
        tokenizer = train_tokenizer(sentences, folder / "model", size.pieces)
        rows = masked.training_rows(tokenizer, sentences)
        langs = [tokenizer.lang2id[sentence.lang] for sentence in sentences]
        shown = masked.shown_riddles(tokenizer, sentences, SHOWN_GROUP)
        riddles = [*shown, *masked.riddles(tokenizer, sentences, size.sampled, seed)]
        blank = " ".join([tokenizer.mask_token] * LENGTH) + "."
        questions = masked.Questions(riddles, list(CODES.values()), blank)
    with steps.step("Training the model with Keras fit", "Keras fit"):
        config = make_config(size, tokenizer, max(map(len, rows)))
        trained = train(config, tokenizer, rows, langs, size, seed)
        trained.model.save_pretrained(folder / "model")
    with steps.step("Converting through the frameworks", "conversions"):
        chain, last = checks.run_chain(trained.model, folder / "checkpoints", tokenizer)
    with steps.step("Comparing the frameworks", "comparison"):
        heatmap = checks.compare(last, example_batch(rows, langs, tokenizer))
    found = masked.ask(questions, last, tokenizer, steps)
    fillings = masked.fillings(questions, found, tokenizer.mask_token, CODES)
    known, first = {tuple(row) for row in rows}, masked.first_words(rows, sentences)
    return FamilySection(
        name="XLM",
        parameters=trained.model.num_parameters(),
        description=describe(size, len(sentences), tokenizer, fillings),
        loss=LossCurve(trained.losses, len(tokenizer), size.goal, trained.final),
        scores=[
            masked.filled_right(riddles, found, known),
            masked.in_language(questions.codes, found, len(riddles), first, "number"),
        ],
        heatmap=heatmap,
        chain=chain,
        fillings=masked.worth_a_look(fillings, len(shown)),
        timings=steps.timings,
    )


def example_batch(
    rows: Sequence[Sequence[int]], langs: Sequence[int], tokenizer: Any, count: int = 6
) -> dict[str, np.ndarray]:
    """Return some sentences with hidden words for the comparison, in several languages."""
    numbers = list(range(0, len(rows), max(1, len(rows) // count)))[:count]
    chosen, theirs = [rows[n] for n in numbers], [langs[n] for n in numbers]
    return batch_of(chosen, theirs, tokenizer, np.random.default_rng(0))


def describe(size: Size, count: int, tokenizer: Any, fillings: Sequence[Filling]) -> str:
    """Return a few sentences on what was done."""
    return (
        f"{size.layers} layers of width {size.width}, trained for {size.epochs} epochs on "
        f"{count:,} sentences in {len(CODES)} languages, some of whose words are hidden, with "
        f"{len(tokenizer):,} byte pairs. {masked.summary(fillings)}"
    )
