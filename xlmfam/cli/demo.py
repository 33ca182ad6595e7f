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
    from xlmfam.cli.report_data import FamilySection, Timing

DESCRIPTION = """\
Everything xlmfam does, for XGLM, XLM, X-MOD and Transformer-XL in turn: trains a tokenizer and a
small model on a text in thirteen languages with Keras, saves it, converts it TensorFlow -> PyTorch
-> Flax -> TensorFlow and shows that not a bit has changed, compares logits, hidden states, loss and
gradients across the three, continues sentences with XGLM and Transformer-XL and fills in hidden
words with XLM and X-MOD alike in the three, adds a language to X-MOD afterwards, measures what
Transformer-XL's memory is worth, and writes a report to look at. Needs no network and all three
frameworks; takes a few minutes. Exits with 1 when anything does not hold."""

EXAMPLES = """\
  xlmfam demo
  xlmfam demo --quick --output /tmp/demo"""


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
        "--quick", action="store_true", help="tiny models on a tenth of the text, about a minute"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training (default 0)")
    return parser


class Steps:
    """Says what is going on, and keeps how long it took.

    Args:
        family: Whose steps they are.
        total: Number of steps.
    """

    def __init__(self, family: str, total: int):
        self.family, self.total = family, total
        self.timings: list[Timing] = []

    @contextmanager
    def step(self, announcement: str, label: str) -> Iterator[None]:
        """Announce and time one step; the report calls it ``label``."""
        from xlmfam.cli.report_data import Timing

        number = f"{len(self.timings) + 1}/{self.total}"
        print(f"[{self.family} {number}] {announcement} ...", flush=True)
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.timings.append(Timing(label, seconds))
        print(f"      {seconds:.1f} s", flush=True)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from xlmfam.cli.report import write_report
    from xlmfam.cli.report_data import ReportData
    from xlmfam.conversion.runners import BACKENDS, require_backend

    for backend in BACKENDS:
        require_backend(backend)
    folder = Path(args.output)
    _check_output(folder)
    if not args.debug:
        preload(BACKENDS)
    started = time.perf_counter()
    data = ReportData(
        title="xlmfam: four models, three frameworks",
        subtitle="A small XGLM, a small XLM, a small X-MOD and a small Transformer-XL, trained "
        "from nothing with Keras, carried from TensorFlow to PyTorch to Flax and back, and held "
        "against themselves all the way.",
        sections=run_families(folder, args.quick, args.seed),
        created=time.strftime("%Y-%m-%d %H:%M"),
        command="xlmfam demo" + (" --quick" if args.quick else ""),
        versions=_versions(),
    )
    report = write_report(folder / "report.html", data)
    for section in data.sections:
        _summarise(section)
    print(f"\n{report} has it all ({time.perf_counter() - started:.0f} s)")
    return 0 if data.passed else 1


def run_families(folder: Path, quick: bool, seed: int) -> list[FamilySection]:
    """Do it all with each family; return what the report says of them."""
    from xlmfam.cli import demo_transfo_xl, demo_xglm, demo_xlm, demo_xmod

    families = (
        ("XGLM", demo_xglm, demo_xglm.run_xglm),
        ("XLM", demo_xlm, demo_xlm.run_xlm),
        ("X-MOD", demo_xmod, demo_xmod.run_xmod),
        ("Transformer-XL", demo_transfo_xl, demo_transfo_xl.run_transfo_xl),
    )
    sections = []
    for name, module, run_family in families:
        size = module.QUICK if quick else module.FULL
        where = folder / name.replace("-", "").lower()
        sections.append(run_family(where, size, seed, Steps(name, module.STEPS)))
    return sections


def _check_output(folder: Path) -> None:
    from xlmfam.common.errors import XlmfamError

    if folder.exists() and not folder.is_dir():
        raise XlmfamError(f"--output {folder} is a file; it must be a folder")
    folder.mkdir(parents=True, exist_ok=True)


def _versions() -> dict[str, str]:
    from importlib import metadata

    names = ("xlmfam", "torch", "tensorflow", "keras", "jax", "flax", "sentencepiece", "numpy")
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in names}


def _summarise(section: FamilySection) -> None:
    """Print what came out, in a few lines."""
    loss, heat = section.loss, section.heatmap
    assert loss is not None
    assert heat is not None
    chain = " -> ".join(step.framework for step in section.chain)
    lines = [
        ("trained", f"loss {loss.final:.3f} (guessing: {loss.guessing:.2f})", loss.passed),
        ("converted", f"{chain}, bit for bit", all(step.exact for step in section.chain)),
        ("verified", f"largest difference {heat.largest:.1e}", heat.passed),
    ]
    for what, parts in (("texts", section.generations), ("guesses", section.fillings)):
        if parts:
            different = sum(not part.equal for part in parts)
            said = f"{different or 'no'} {what} differ between the three"
            lines.append(("compared", said, not different))
    for score in section.scores:
        lines.append(("learned", f"{score.right} of {score.asked} {score.what}", score.passed))
    for reading in section.readings:
        said = f"{reading.text}: perplexity {reading.without:.2f}, with memory "
        said += f"{reading.with_memory:.2f}, {reading.difference:.0e} apart"
        lines.append(("read", said, reading.equal and reading.helps))
    if section.addition:
        added = section.addition
        said = f"{added.language} afterwards, loss {added.before:.2f} -> {added.after:.2f}, "
        said += f"{added.share:.1%} of the values"
        lines.append(("added", said, added.passed))
    print(f"\n{section.name}")
    for label, text, good in lines:
        print(f"  {'ok' if good else 'FAILED':6}  {label:9}  {text}")
    print(f"{section.description}")
