"""The demo's proof: through three frameworks and back, and the same text in all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.cli.demo_text import IGNORED, Prompt, padded
from xlmfam.cli.report_data import ChainStep, Generation, Heatmap, Score

# Framework, its own file format, and how the report calls the stop.
STOPS = (
    ("tf", "tf", "TensorFlow, as trained"),
    ("pt", "pt", "PyTorch"),
    ("flax", "flax", "Flax"),
    ("tf", "safetensors", "TensorFlow again"),
)
BACKENDS = ("pt", "tf", "flax")
TOLERANCE = 5e-5


def run_chain(model: Any, folder: Path, tokenizer: Any) -> tuple[list[ChainStep], Path]:
    """Carry a model through the frameworks, each loading what the one before it has saved.

    Args:
        model: The trained Keras model.
        folder: Where the checkpoints are written, one folder for each stop.
        tokenizer: Saved beside every checkpoint.

    Returns:
        The stops with the checksum of the weights as each framework holds them, and the folder
        of the last checkpoint.
    """
    from xlmfam.common.checkpoints.files import get_format
    from xlmfam.conversion import checksum
    from xlmfam.conversion.runners import load

    steps: list[ChainStep] = []
    saved: Path | None = None
    for number, (backend, form, label) in enumerate(STOPS, start=1):
        started = time.perf_counter()
        held = model if saved is None else load(backend, saved)
        digest = checksum(held.to_canonical())
        saved = folder / f"{number}-{backend}"
        held.save_pretrained(saved, format=form)
        tokenizer.save_pretrained(saved)
        first = steps[0].checksum if steps else digest
        steps.append(
            ChainStep(
                framework=label,
                file=f"{saved.name}/{get_format(form).single}",
                checksum=digest,
                # The file is held to it as well, read without any framework.
                exact=digest == first and checksum(saved) == first,
                seconds=time.perf_counter() - started,
            )
        )
    assert saved is not None
    return steps, saved


def compare(checkpoint: Path, inputs: Mapping[str, np.ndarray]) -> Heatmap:
    """Run a checkpoint in the three frameworks; return how far they are apart."""
    from xlmfam.conversion import verify
    from xlmfam.conversion.runners import FRAMEWORKS

    verification = verify(checkpoint, inputs=inputs, tolerance=TOLERANCE, jit=True)
    return Heatmap(
        rows=verification.fields,
        columns=[f"{FRAMEWORKS[a]} – {FRAMEWORKS[b]}" for a, b in verification.pairs],
        values=verification.matrix(),
        tolerance=verification.tolerance,
    )


def sentences_batch(
    rows: Sequence[Sequence[int]], tokenizer: Any, count: int = 6
) -> dict[str, np.ndarray]:
    """Return some training sentences for the comparison, the first one padded on the left."""
    step = max(1, len(rows) // count)
    batch = padded(list(rows[::step])[:count], tokenizer.pad_token_id)
    padding = int((batch["attention_mask"][0] == 0).sum())
    for value in batch.values():
        value[0] = np.roll(value[0], padding)
    # Its first token would be predicted from padding, whose states mean nothing.
    batch["labels"][0, padding] = IGNORED
    return batch


def continuations(
    backend: str, checkpoint: Path, tokenizer: Any, prompts: Sequence[Prompt], new_tokens: int
) -> list[str]:
    """Continue prompts greedily in one backend, all in one batch; Flax under ``jax.jit``.

    Args:
        backend: ``pt``, ``tf`` or ``flax``.
        checkpoint: What to load.
        tokenizer: Its tokenizer.
        prompts: Prompts of unequal length.
        new_tokens: Most tokens to add to each.
    """
    from xlmfam.conversion.runners import generate, load

    model = load(backend, checkpoint)
    tokenizer.padding_side = "left"
    texts = [prompt.text for prompt in prompts]
    encoded = tokenizer(texts, padding=True, return_attention_mask=True, return_tensors="np")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    ids = generate(backend, model, inputs, jit=backend == "flax", max_new_tokens=new_tokens)
    return tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)


def as_generations(
    prompts: Sequence[Prompt], outputs: Mapping[str, Sequence[str]]
) -> list[Generation]:
    """Return what the report shows for each prompt: a text of every backend."""
    return [
        Generation(
            prompt=prompt.text,
            outputs={name: texts[index] for name, texts in outputs.items()},
            language=prompt.language,
        )
        for index, prompt in enumerate(prompts)
    ]


def recall(prompts: Sequence[Prompt], outputs: Mapping[str, Sequence[str]], skipped: int) -> Score:
    """Count the sentences that every framework completes to the letter.

    Args:
        prompts: The prompts and their sentences.
        outputs: The texts of each framework.
        skipped: Number of texts before those of ``prompts``.
    """
    completed = sum(
        all(texts[skipped + index] == prompt.sentence for texts in outputs.values())
        for index, prompt in enumerate(prompts)
    )
    return Score(
        "Completed",
        "sentences, from their first half",
        completed,
        len(prompts),
        check="remembers its text",
    )
