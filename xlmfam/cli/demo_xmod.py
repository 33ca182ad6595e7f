"""The demo's X-MOD: an adapter for each language, and one for a language that comes afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmfam.cli import demo_checks as checks
from xlmfam.cli import demo_masked as masked
from xlmfam.cli import demo_training as training
from xlmfam.cli.demo_text import read_corpus, train_tokenizer
from xlmfam.cli.demo_training import Size
from xlmfam.cli.report_data import Addition, FamilySection, Filling, LossCurve

if TYPE_CHECKING:
    from xlmfam.cli.demo import Steps

FULL = Size(60, 2000, 128, 2, 4, 48, 32, 3e-3, 2.0, 200)
QUICK = Size(10, 600, 64, 2, 4, 24, 50, 6e-3, 2.0, 30)
STEPS = 8
# Nothing is known of this text but its language.
LENGTH = 4
SHOWN_GROUP = 4  # of the corpus: one sentence of each language is shown with a hidden word
# The codes of the public checkpoints.
CODES = {
    **{"English": "en_XX", "German": "de_DE", "French": "fr_XX", "Spanish": "es_XX"},
    **{"Turkish": "tr_TR", "Swahili": "sw_KE", "Russian": "ru_RU", "Greek": "el_GR"},
    **{"Arabic": "ar_AR", "Hindi": "hi_IN", "Chinese": "zh_CN", "Japanese": "ja_XX"},
    "Korean": "ko_KR",
}
# Each adapter takes its time to compile, so that a quick run has few.
FEW = ("English", "German", "Swahili", "Russian", "Arabic", "Chinese")
LATER = "Swahili"  # is added when the others are learned


def codes_of(size: Size) -> dict[str, str]:
    """Return the languages of a run of that size: their codes, by name."""
    return {name: code for name, code in CODES.items() if size is not QUICK or name in FEW}


def make_config(size: Size, tokenizer: Any, longest: int) -> Any:
    """Return the config of the demo's model, without the language that comes afterwards."""
    from xlmfam import XmodConfig

    return XmodConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max(64, 2 * longest),
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        type_vocab_size=1,
        languages=[code for name, code in codes_of(size).items() if name != LATER],
        layer_norm_eps=1e-5,
        # A text this small is to be learned by heart, so nothing is dropped.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=size.width**-0.5 / 2,
    )


def later(size: Size) -> Size:
    """Return how long the language that comes afterwards is learned: its text is short.

    It meets embeddings that know nothing of its words, so its goal is a modest one.
    """
    return replace(size, batch=24, epochs=80, rate=1e-2, goal=5.0)


class Text:
    """Sentences of some languages, and batches of them with hidden words.

    Args:
        rows: Ids of the sentences.
        langs: Code of each one's language.
        tokenizer: Knows the mask token.
    """

    def __init__(self, rows: Sequence[Sequence[int]], langs: Sequence[str], tokenizer: Any):
        self.rows, self.langs, self.tokenizer = rows, langs, tokenizer

    def of(self, codes: Sequence[str]) -> Text:
        """Return the sentences that are in one of ``codes``."""
        chosen = [number for number, lang in enumerate(self.langs) if lang in codes]
        rows, langs = [self.rows[n] for n in chosen], [self.langs[n] for n in chosen]
        return Text(rows, langs, self.tokenizer)

    def batch(
        self, config: Any, numbers: Sequence[int], rng: np.random.Generator
    ) -> training.Batch:
        """Return some sentences, by their numbers, each in its language."""
        batch = masked.hidden([self.rows[n] for n in numbers], self.tokenizer, rng)
        ids = [config.lang2id[self.langs[n]] for n in numbers]
        return {**batch, "lang_ids": np.array(ids)}

    def example(self, config: Any) -> training.Batch:
        """Return a sentence in each language, all in one batch."""
        numbers = [self.langs.index(code) for code in config.languages]
        return self.batch(config, numbers, np.random.default_rng(0))

    def batches(self, config: Any, size: Size, seed: int) -> Any:
        """Return all of it as a ``tf.data.Dataset``."""
        return training.batches_of(
            self.rows, size.batch, lambda numbers, rng: self.batch(config, numbers, rng), seed
        )


def train(config: Any, text: Text, size: Size, seed: int) -> training.Trained:
    """Train a model on sentences with hidden words.

    Args:
        config: Of the model.
        text: The sentences.
        size: How long to train.
        seed: Of initial values, shuffling and what is hidden.
    """
    import keras

    from xlmfam.tf import XmodForMaskedLM

    keras.utils.set_random_seed(seed)
    model = XmodForMaskedLM.from_config(config)
    return training.train(model, text.batches(config, size, seed), size, lean=True)


def add_language(trained: training.Trained, text: Text, size: Size, seed: int) -> Addition:
    """Give a trained model the language that comes afterwards; nothing but its adapters learns.

    Args:
        trained: The model.
        text: Sentences of the language.
        size: How long to train.
        seed: Of shuffling and what is hidden.
    """
    from xlmfam.conversion import checksum

    model, code, started = trained.model, CODES[LATER], time.perf_counter()
    before = model.to_canonical()
    digest = checksum(before)
    model.add_language(code, init_from="mean")
    model.train_only_language(code)
    model.roberta.embeddings.trainable = False  # they are all languages'
    unlearned = loss_on(model, text, seed)
    training.train(model, text.batches(model.config, size, seed), size, lean=True)
    after = model.to_canonical()
    return Addition(
        language=LATER,
        beginning="the mean of the others",
        learned=model.num_parameters(only_trainable=True),
        parameters=model.num_parameters(),
        seconds=time.perf_counter() - started,
        before=unlearned,
        after=loss_on(model, text, seed),
        others=trained.final,
        untouched=checksum({name: after[name] for name in before}) == digest,
        goal=size.goal,
    )


def loss_on(model: Any, text: Text, seed: int) -> float:
    """Return the mean loss over all of a text; the same words are hidden whenever it is asked."""
    batch = text.batch(model.config, range(len(text.rows)), np.random.default_rng(seed))
    return float(np.mean(model(**batch).loss))


def run_xmod(folder: Path, size: Size, seed: int, steps: Steps) -> FamilySection:
    """Train, add a language, convert, verify and fill in; return what the report says of it."""
    codes = codes_of(size)
    with steps.step("Training a tokenizer", "tokenizer"):
        sentences = masked.with_languages(read_corpus(size.groups), codes)
        lines = [sentence.text for sentence in sentences]
        tokenizer = train_tokenizer(
            lines, folder / "model", size.pieces, "XLMRobertaTokenizer", "bpe"
        )
        rows = masked.training_rows(tokenizer, sentences)
        text = Text(rows, [sentence.lang for sentence in sentences], tokenizer)
        shown = masked.shown_riddles(tokenizer, sentences, SHOWN_GROUP)
        riddles = [*shown, *masked.riddles(tokenizer, sentences, size.sampled, seed)]
        blank = " ".join([tokenizer.mask_token] * LENGTH)
        questions = masked.Questions(riddles, list(codes.values()), blank)
    with steps.step(f"Training the model with Keras fit, without {LATER}", "Keras fit"):
        config = make_config(size, tokenizer, max(map(len, rows)))
        trained = train(config, text.of(config.languages), size, seed)
    with steps.step(f"Adding {LATER}", f"adding {LATER}"):
        addition = add_language(trained, text.of([CODES[LATER]]), later(size), seed)
        trained.model.save_pretrained(folder / "model")
    with steps.step("Converting through the frameworks", "conversions"):
        chain, last = checks.run_chain(trained.model, folder / "checkpoints", tokenizer)
    with steps.step("Comparing the frameworks", "comparison"):
        heatmap = checks.compare(last, text.example(trained.model.config))
    found = masked.ask(questions, last, tokenizer, steps)
    fillings = masked.fillings(questions, found, tokenizer.mask_token, codes)
    known, first = {tuple(row) for row in rows}, masked.first_words(rows, sentences)
    return FamilySection(
        name="X-MOD",
        parameters=trained.model.num_parameters(),
        description=describe(size, len(rows), tokenizer, fillings),
        loss=LossCurve(trained.losses, len(tokenizer), size.goal, trained.final),
        scores=[
            masked.filled_right(riddles, found, known, 0.5),
            masked.in_language(questions.codes, found, len(riddles), first, "adapters"),
        ],
        heatmap=heatmap,
        chain=chain,
        fillings=masked.worth_a_look(fillings, len(shown)),
        addition=addition,
        timings=steps.timings,
    )


def describe(size: Size, count: int, tokenizer: Any, fillings: Sequence[Filling]) -> str:
    """Return a few sentences on what was done."""
    return (
        f"{size.layers} layers of width {size.width} with an adapter for each language, trained "
        f"for {size.epochs} epochs on {count:,} sentences in {len(codes_of(size))} languages, some "
        f"of whose words are hidden, with a sentencepiece vocabulary of {len(tokenizer):,}; "
        f"{LATER} came after the others. {masked.summary(fillings)}"
    )
