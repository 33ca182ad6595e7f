"""The demo's Transformer-XL: it reads a long text in segments and remembers what came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmfam.cli import demo_checks as checks
from xlmfam.cli import demo_text as text
from xlmfam.cli import demo_training as training
from xlmfam.cli.demo_training import Size
from xlmfam.cli.report_data import FamilySection, LossCurve, Reading

if TYPE_CHECKING:
    from xlmfam.cli.demo import Steps

FULL = Size(None, 4000, 96, 2, 4, 16, 16, 6e-3, 0.5, 100)
QUICK = Size(24, 1000, 64, 2, 4, 4, 20, 1e-2, 0.5, 20)
STEPS = 8
END = "<eos>"  # stands behind every sentence
# Those that Moses takes apart into words and puts together again as they were.
LANGUAGES = (
    *("English", "German", "French", "Spanish", "Turkish", "Swahili"),
    *("Russian", "Greek", "Arabic"),
)
SEGMENT = 24
MEMORY = 72  # about what one sentence takes in all the languages
FORGETS = 0.2  # of the segments in training begin with no memory, as prompts do
READ = 50  # segments, at most, of a text that is evaluated
NEW_TOKENS = 20
SHOWN_GROUP = 4  # of the text that is learned


@dataclass(frozen=True)
class Text:
    """A text in which every sentence is followed by its translations.

    Attributes:
        sentences: Those to learn, as the tokenizer puts them together, in ``LANGUAGES`` in turn.
        groups: Ids of each sentence to learn and its translations, with an end behind each.
        unseen: Ids of sentences that are never learned, one after the other.
    """

    sentences: Sequence[str]
    groups: Sequence[np.ndarray]
    unseen: np.ndarray

    @property
    def learned(self) -> np.ndarray:
        """Ids of all that is to learn, one after the other."""
        return np.concatenate(self.groups)

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """Return the same with the groups in another order."""
        return np.concatenate([self.groups[number] for number in rng.permutation(len(self.groups))])


def read_groups(count: int | None) -> list[list[str]]:
    """Return each sentence of the corpus with its translations; the first ``count`` where given."""
    lines = text.read_corpus(count)
    places = [text.LANGUAGES.index(name) for name in LANGUAGES]
    starts = range(0, len(lines), len(text.LANGUAGES))
    return [[lines[start + place] for place in places] for start in starts]


def make_tokenizer(groups: Sequence[Sequence[str]], folder: Path, words: int) -> Any:
    """Count the words of a text and make a tokenizer of them, saved in ``folder``.

    Args:
        groups: The text.
        folder: Where the tokenizer is saved.
        words: Most words of the vocabulary.
    """
    from xlmfam import TransfoXLTokenizer

    tokenizer = TransfoXLTokenizer([END, "<unk>"], max_size=words, pad_token=END)
    lines = [line for group in groups for line in group]
    tokenizer.count_sents(tokenizer.tokenize(line, add_eos=True) for line in lines)
    tokenizer.build_vocab()
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_text(tokenizer: Any, groups: Sequence[Sequence[str]], seed: int) -> Text:
    """Return the text as ids; every tenth group, drawn by chance, is not learned."""
    ids = [tokenizer(list(group), add_eos=True)["input_ids"] for group in groups]
    flat = [np.array([number for row in rows for number in row]) for rows in ids]
    order = np.random.default_rng(seed).permutation(len(groups))
    count = max(1, len(groups) // 10)
    unseen, learned = sorted(order[:count]), sorted(order[count:])
    rows = [row for number in learned for row in ids[number]]
    return Text(
        tokenizer.batch_decode(rows, skip_special_tokens=True),
        [flat[number] for number in learned],
        np.concatenate([flat[number] for number in unseen]),
    )


def shown_prompts(tokenizer: Any, story: Text) -> list[text.Prompt]:
    """Return a prompt in each language but the first from one group of the text."""
    found = text.shown_prompts(tokenizer, story.sentences, SHOWN_GROUP, LANGUAGES, LANGUAGES[1:])
    return [behind_translation(prompt, story) for prompt in found]


def sampled_prompts(tokenizer: Any, story: Text, count: int, seed: int) -> list[text.Prompt]:
    """Return prompts from sentences drawn from the text that follow a translation."""
    found = text.sampled_prompts(tokenizer, story.sentences, 2 * count, seed, LANGUAGES)
    chosen = [prompt for prompt in found if prompt.language != LANGUAGES[0]][:count]
    return [behind_translation(prompt, story) for prompt in chosen]


def behind_translation(prompt: text.Prompt, story: Text) -> text.Prompt:
    """Return a prompt with the sentence before it, its translation, in front."""
    place = story.sentences.index(prompt.sentence)
    before = f"{story.sentences[place - 1]} {END} "
    return text.Prompt(prompt.language, before + prompt.text, before + prompt.sentence)


def without_ends(prompts: Sequence[text.Prompt]) -> list[text.Prompt]:
    """Return prompts as they are read: without the tokens that end a sentence."""
    return [
        text.Prompt(p.language, p.text.replace(f" {END}", ""), p.sentence.replace(f" {END}", ""))
        for p in prompts
    ]


def make_config(size: Size, tokenizer: Any) -> Any:
    """Return the config of the demo's model: three clusters, the rarer words the narrower."""
    from xlmfam import TransfoXLConfig

    words = len(tokenizer)
    return TransfoXLConfig(
        vocab_size=words,
        cutoffs=[words // 4, words // 2],
        div_val=2,
        d_model=size.width,
        d_embed=size.width,
        n_head=size.heads,
        d_head=size.width // size.heads,
        d_inner=4 * size.width,
        n_layer=size.layers,
        mem_len=MEMORY,
        clamp_len=-1,
        # A text this small is to be learned by heart, so nothing is dropped.
        dropout=0.0,
        dropatt=0.0,
        init_std=size.width**-0.5 / 2,
        proj_init_std=size.width**-0.5 / 2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(config: Any, story: Text, size: Size, seed: int) -> training.Trained:
    """Train a model segment by segment, each with the memories of the one before.

    Args:
        config: Of the model.
        story: The text.
        size: How long to train.
        seed: Of initial values and of the order of the groups.
    """
    import keras
    import tensorflow as tf

    from xlmfam.common.evaluation import segments
    from xlmfam.tf import TransfoXLLMHeadModel

    keras.utils.set_random_seed(seed)
    model = TransfoXLLMHeadModel.from_config(config)
    # What is left at the end is shorter than a segment, and would be compiled anew.
    count = (len(story.learned) // size.batch - 1) // SEGMENT
    step = training_step(model, training.optimizer_of(size, size.epochs * count, lean=True))
    rng, losses = np.random.default_rng(seed), []
    for epoch in range(size.epochs):
        mems = model.init_mems(size.batch)
        rows = segments(story.shuffled(rng), size.batch, SEGMENT)
        for (ids, targets), _ in zip(rows, range(count), strict=False):
            if rng.random() < FORGETS:
                mems = model.init_mems(size.batch)
            loss, mems = step(tf.constant(ids), tf.constant(targets), mems)
            losses.append(float(loss))
        mean = float(np.mean(losses[-count:]))
        print(f"      epoch {epoch + 1}/{size.epochs}, loss {mean:.4f}", flush=True)
    found = model.evaluate_perplexity(story.learned, size.batch, SEGMENT)
    return training.Trained(model, losses, found.loss)


def training_step(model: Any, optimizer: Any) -> Any:
    """Return a compiled step: it takes ids, targets and memories, returns loss and memories."""
    import tensorflow as tf

    variables = model.trainable_variables
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step(ids: Any, targets: Any, mems: Any) -> Any:
        with tf.GradientTape() as tape:
            losses, kept = model.token_losses(ids, targets, mems)
            loss = tf.reduce_mean(losses)
        slopes = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(slopes, variables, strict=True))
        return loss, kept

    return step


def read(checkpoint: Path, story: Text) -> list[Reading]:
    """Evaluate a checkpoint in every framework, on what it learned and on what it never saw."""
    from xlmfam.conversion.runners import FRAMEWORKS, load

    streams = {"learned text": beginning(story.learned), "unseen text": beginning(story.unseen)}
    models = {FRAMEWORKS[backend]: load(backend, checkpoint) for backend in checks.BACKENDS}

    def losses(stream: np.ndarray, memory: int) -> dict[str, float]:
        return {
            name: model.evaluate_perplexity(stream, 1, SEGMENT, memory).loss
            for name, model in models.items()
        }

    return [
        Reading(
            text=name,
            tokens=len(stream) - 1,
            segment=SEGMENT,
            memory=MEMORY,
            remembering=losses(stream, MEMORY),
            forgetful=losses(stream, 0),
            tolerance=checks.TOLERANCE,
        )
        for name, stream in streams.items()
    ]


def beginning(stream: np.ndarray) -> np.ndarray:
    """Return whole segments of a text: a shorter one at the end would be compiled anew."""
    return stream[: min(READ, (len(stream) - 1) // SEGMENT) * SEGMENT + 1]


def run_transfo_xl(folder: Path, size: Size, seed: int, steps: Steps) -> FamilySection:
    """Train, convert, verify, evaluate and generate; return what the report says of it."""
    from xlmfam.conversion.runners import FRAMEWORKS

    with steps.step("Making a vocabulary", "vocabulary"):
        groups = read_groups(size.groups)
        tokenizer = make_tokenizer(groups, folder / "model", size.pieces)
        story = make_text(tokenizer, groups, seed)
        prompts = shown_prompts(tokenizer, story)
        sampled = sampled_prompts(tokenizer, story, size.sampled, seed)
    with steps.step("Training the model with carried memories", "training"):
        trained = train(make_config(size, tokenizer), story, size, seed)
        trained.model.save_pretrained(folder / "model")
    with steps.step("Converting through the frameworks", "conversions"):
        chain, last = checks.run_chain(trained.model, folder / "checkpoints", tokenizer)
    with steps.step("Comparing the frameworks", "comparison"):
        rows = [tokenizer(sentence, add_eos=True)["input_ids"] for sentence in story.sentences]
        heatmap = checks.compare(last, left_padded(rows, tokenizer.pad_token_id))
    with steps.step("Reading with memory and without, in the three", "perplexities"):
        readings = read(last, story)
    outputs: dict[str, list[str]] = {}
    asked = [*prompts, *sampled]
    for backend in checks.BACKENDS:
        how = " under jax.jit" if backend == "flax" else ""
        name = FRAMEWORKS[backend]
        with steps.step(f"Generating in {name}{how}", f"text, {name}"):
            outputs[name] = checks.continuations(backend, last, tokenizer, asked, NEW_TOKENS)
    generations = checks.as_generations(without_ends(asked), outputs)
    # Few are enough to look at; but what differs is not to be hidden.
    shown = [g for i, g in enumerate(generations) if i < len(prompts) or not g.equal]
    different = sum(not generation.equal for generation in generations)
    said = f"{different} differ" if different else "they are the same in the three frameworks"
    return FamilySection(
        name="Transformer-XL",
        parameters=trained.model.num_parameters(),
        description=f"{size.layers} layers of width {size.width} with a memory of {MEMORY} tokens, "
        f"trained for {size.epochs} epochs on {len(story.sentences):,} sentences, each followed by "
        f"its translations, in {len(LANGUAGES)} languages with a vocabulary of {len(tokenizer):,} "
        f"words in three clusters. It continued {len(asked)} sentences behind a translation, "
        f"all in one batch padded on the left: {said}.",
        loss=LossCurve(trained.losses, len(tokenizer), size.goal, trained.final),
        scores=[checks.recall(without_ends(sampled), outputs, len(prompts))],
        heatmap=heatmap,
        chain=chain,
        generations=shown,
        readings=readings,
        timings=steps.timings,
    )


def left_padded(rows: Sequence[Sequence[int]], pad: int, count: int = 6) -> dict[str, np.ndarray]:
    """Return some sentences for the comparison, padded on the left, with labels."""
    chosen = list(rows[:: max(1, len(rows) // count)])[:count]
    batch = text.padded(chosen, pad)
    for place, row in enumerate(chosen):
        for value in batch.values():
            value[place] = np.roll(value[place], -len(row))
        # Its first token would be predicted from padding, whose states mean nothing.
        batch["labels"][place, -len(row)] = text.IGNORED
    return batch
