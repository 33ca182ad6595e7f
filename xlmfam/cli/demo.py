"""``xlmfam demo``: the whole way, from a text to a report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmfam.cli.options import new_command, preload

if TYPE_CHECKING:
    from xlmfam.cli.demo_training import Size
    from xlmfam.cli.report import FamilySection, Timing

DESCRIPTION = """\
Everything xlmfam does, once: trains a tokenizer and a small XGLM on a text in thirteen languages
with Keras `fit`, saves it, converts it TensorFlow -> PyTorch -> Flax -> TensorFlow and shows that
not a bit has changed, compares logits, hidden states, loss and gradients across the three,
generates the same text in the three, and writes a report to look at. Needs no network and all
three frameworks; takes a few minutes. Exits with 1 when anything does not hold."""

EXAMPLES = """\
  xlmfam demo
  xlmfam demo --quick --output /tmp/demo"""

TOLERANCE = 5e-5
NEW_TOKENS = 40
SHOWN_GROUP = 4  # of the corpus: the sentences whose continuations the report shows


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = new_command(
        subparsers, "demo", "train, convert, verify, generate, report", DESCRIPTION, EXAMPLES
    )
    parser.add_argument(
        "--output",
        default="demo_output",
        metavar="DIR",
        help="folder for checkpoints and report.html (default demo_output)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model on a tenth of the text, half a minute"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training (default 0)")
    return parser


class Steps:
    """Says what is going on, and keeps how long it took.

    Args:
        total: Number of steps.
    """

    def __init__(self, total: int):
        self.total = total
        self.timings: list[Timing] = []

    @contextmanager
    def step(self, announcement: str, label: str) -> Iterator[None]:
        """Announce and time one step; the report calls it ``label``."""
        from xlmfam.cli.report import Timing

        print(f"[{len(self.timings) + 1}/{self.total}] {announcement} ...", flush=True)
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.timings.append(Timing(label, seconds))
        print(f"      {seconds:.1f} s", flush=True)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from xlmfam.cli.demo_training import FULL, QUICK
    from xlmfam.cli.report import ReportData, write_report
    from xlmfam.conversion.runners import BACKENDS, require_backend

    for backend in BACKENDS:
        require_backend(backend)
    folder = Path(args.output)
    _check_output(folder)
    if not args.debug:
        preload(BACKENDS)
    started = time.perf_counter()
    section = run_family(folder, QUICK if args.quick else FULL, args.seed)
    data = ReportData(
        title="xlmfam: one model, three frameworks",
        subtitle="A small XGLM, trained from nothing with Keras, carried from TensorFlow to "
        "PyTorch to Flax and back, and held against itself all the way.",
        sections=[section],
        created=time.strftime("%Y-%m-%d %H:%M"),
        command="xlmfam demo" + (" --quick" if args.quick else ""),
        versions=_versions(),
    )
    report = write_report(folder / "report.html", data)
    _summarise(section, report, time.perf_counter() - started)
    return 0 if data.passed else 1


def run_family(folder: Path, size: Size, seed: int) -> FamilySection:
    """Train, convert, verify and generate; return what the report says of it."""
    from xlmfam.cli import demo_checks as checks
    from xlmfam.cli import demo_text as text
    from xlmfam.cli import demo_training as training
    from xlmfam.cli.report import FamilySection, Heatmap, LossCurve
    from xlmfam.conversion import verify
    from xlmfam.conversion.runners import FRAMEWORKS

    steps = Steps(7)
    with steps.step("Training a tokenizer", "tokenizer"):
        sentences = text.read_corpus(size.groups)
        tokenizer = text.train_tokenizer(sentences, folder / "model", size.pieces)
        rows = text.training_rows(tokenizer, sentences)
        prompts = text.shown_prompts(tokenizer, sentences, SHOWN_GROUP)
        sampled = text.sampled_prompts(tokenizer, sentences, size.sampled, seed)
    with steps.step("Training the model with Keras fit", "Keras fit"):
        config = training.make_config(size, tokenizer, max(map(len, rows)))
        trained = training.train(config, rows, size, seed)
        trained.model.save_pretrained(folder / "model")
    with steps.step("Converting through the frameworks", "conversions"):
        chain, last = checks.run_chain(trained.model, folder / "checkpoints", tokenizer)
    with steps.step("Comparing the frameworks", "comparison"):
        verification = verify(
            last, inputs=checks.sentences_batch(rows, tokenizer), tolerance=TOLERANCE
        )
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
        recall=checks.recall(sampled, outputs, len(prompts)),
        heatmap=Heatmap(
            rows=verification.fields,
            columns=[f"{FRAMEWORKS[a]} – {FRAMEWORKS[b]}" for a, b in verification.pairs],
            values=verification.matrix(),
            tolerance=verification.tolerance,
        ),
        chain=chain,
        generations=shown,
        timings=steps.timings,
    )


def _check_output(folder: Path) -> None:
    from xlmfam.common.errors import XlmfamError

    if folder.exists() and not folder.is_dir():
        raise XlmfamError(f"--output {folder} is a file; it must be a folder")
    folder.mkdir(parents=True, exist_ok=True)


def _versions() -> dict[str, str]:
    from importlib import metadata

    names = ("xlmfam", "torch", "tensorflow", "keras", "jax", "flax", "sentencepiece", "numpy")
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in names}


def _summarise(section: FamilySection, report: Path, seconds: float) -> None:
    """Print what came out, in a few lines."""
    loss, heat = section.loss, section.heatmap
    assert loss is not None
    assert heat is not None
    different = sum(not generation.equal for generation in section.generations)
    recall = section.recall
    assert recall is not None
    chain = " -> ".join(step.framework for step in section.chain)
    lines = [
        ("trained", f"loss {loss.final:.3f} (guessing: {loss.guessing:.2f})", loss.passed),
        ("converted", f"{chain}, bit for bit", all(step.exact for step in section.chain)),
        ("verified", f"largest difference {heat.largest:.1e}", heat.passed),
        ("generated", f"{different or 'no'} texts differ between the three", different == 0),
        ("learned", f"{recall.completed} of {recall.asked} sentences completed", recall.passed),
    ]
    print()
    for label, text, good in lines:
        print(f"  {'ok' if good else 'FAILED':6}  {label:9}  {text}")
    print(f"\n{section.description}")
    print(f"\n{report} has it all ({seconds:.0f} s)")
