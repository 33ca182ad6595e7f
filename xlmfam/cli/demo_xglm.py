"""The demo's XGLM: it learns a text and continues its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmfam.cli import demo_checks as checks
from xlmfam.cli import demo_text as text
from xlmfam.cli import demo_training as training
from xlmfam.cli.demo_training import Size
from xlmfam.cli.report_data import FamilySection, LossCurve

if TYPE_CHECKING:
    from xlmfam.cli.demo import Steps

FULL = Size(None, 2000, 128, 3, 4, 64, 20, 4e-3, 1.0, 130)
QUICK = Size(10, 700, 64, 2, 4, 26, 30, 8e-3, 1.0, 26)
STEPS = 7
NEW_TOKENS = 40
SHOWN_GROUP = 4  # of the corpus: the sentences whose continuations the report shows


def make_config(size: Size, tokenizer: Any, longest: int) -> Any:
    """Return the config of the demo's model."""
    from xlmfam import XGLMConfig

    return XGLMConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max(64, 2 * longest),
        d_model=size.width,
        ffn_dim=4 * size.width,
        num_layers=size.layers,
        attention_heads=size.heads,
        # A text this small is to be learned by heart, so nothing is dropped.
        dropout=0.0,
        attention_dropout=0.0,
        init_std=size.width**-0.5 / 2,
    )


def train(config: Any, rows: Sequence[Sequence[int]], size: Size, seed: int) -> training.Trained:
    """Train a model on the ids of every sentence.

    Args:
        config: Of the model.
        rows: The ids of every sentence.
        size: How long to train.
        seed: Of initial values and shuffling.
    """
    import keras

    from xlmfam.tf import XGLMForCausalLM

    keras.utils.set_random_seed(seed)
    model = XGLMForCausalLM.from_config(config)

    def make(numbers: list[int], rng: Any) -> training.Batch:  # noqa: ARG001
        return text.padded([rows[number] for number in numbers], config.pad_token_id)

    return training.train(model, training.batches_of(rows, size.batch, make, seed), size)


def run_xglm(folder: Path, size: Size, seed: int, steps: Steps) -> FamilySection:
    """Train, convert, verify and generate; return what the report says of it."""
    from xlmfam.conversion.runners import FRAMEWORKS

    with steps.step("Training a tokenizer", "tokenizer"):
        sentences = text.read_corpus(size.groups)
        tokenizer = text.train_tokenizer(sentences, folder / "model", size.pieces)
        rows = text.training_rows(tokenizer, sentences)
        prompts = text.shown_prompts(tokenizer, sentences, SHOWN_GROUP)
        sampled = text.sampled_prompts(tokenizer, sentences, size.sampled, seed)
    with steps.step("Training the model with Keras fit", "Keras fit"):
        config = make_config(size, tokenizer, max(map(len, rows)))
        trained = train(config, rows, size, seed)
        trained.model.save_pretrained(folder / "model")
    with steps.step("Converting through the frameworks", "conversions"):
        chain, last = checks.run_chain(trained.model, folder / "checkpoints", tokenizer)
    with steps.step("Comparing the frameworks", "comparison"):
        heatmap = checks.compare(last, checks.sentences_batch(rows, tokenizer))
    outputs: dict[str, list[str]] = {}
    asked = [*prompts, *sampled]
    for backend in checks.BACKENDS:
        how = " under jax.jit" if backend == "flax" else ""
        name = FRAMEWORKS[backend]
        with steps.step(f"Generating in {name}{how}", f"text, {name}"):
            outputs[name] = checks.continuations(backend, last, tokenizer, asked, NEW_TOKENS)
    generations = checks.as_generations(asked, outputs)
    # Few are enough to look at; but what differs is not to be hidden.
    shown = [g for i, g in enumerate(generations) if i < len(prompts) or not g.equal]
    different = sum(not generation.equal for generation in generations)
    said = f"{different} differ" if different else "they are the same in the three frameworks"
    return FamilySection(
        name="XGLM",
        parameters=trained.model.num_parameters(),
        description=f"{size.layers} layers of width {size.width}, trained for {size.epochs} epochs "
        f"on {len(sentences):,} sentences in {len(text.LANGUAGES)} languages with a sentencepiece "
        f"vocabulary of {len(tokenizer):,}. It continued {len(asked)} prompts: {said}.",
        loss=LossCurve(trained.losses, len(tokenizer), size.goal, trained.final),
        scores=[checks.recall(sampled, outputs, len(prompts))],
        heatmap=heatmap,
        chain=chain,
        generations=shown,
        timings=steps.timings,
    )
