"""What the workers share: arguments, inputs, timing, memory. Standard library and NumPy only.

It runs in every interpreter of the comparison, so that all sides are measured by the same code.
A worker is a class with a method per task (see ``TASKS``); it prints one JSON line per metric.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TASKS = ("load", "prefill", "decode1", "decode8", "train")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of the work given to it."""

    config: dict[str, int]
    prefill: int = 512
    prompt: int = 16
    new_tokens: int = 32
    train: int = 128


SHAPES = {
    "564m": Shape(
        {
            "vocab_size": 256008,
            "d_model": 1024,
            "ffn_dim": 4096,
            "num_layers": 24,
            "attention_heads": 16,
        }
    ),
    "small": Shape(
        {
            "vocab_size": 8008,
            "d_model": 128,
            "ffn_dim": 512,
            "num_layers": 4,
            "attention_heads": 4,
        },
        prefill=64,
    ),
}


@dataclass(frozen=True)
class Arguments:
    """What a worker is asked to do."""

    backend: str
    task: str
    checkpoint: str
    shape: Shape
    repeats: int
    seconds: float

    def ids(self, batch: int, length: int, seed: int = 0) -> np.ndarray:
        """Token ids, the same in every worker and without special tokens: int32 (batch, length)."""
        vocab = self.shape.config["vocab_size"]
        draw = np.random.default_rng(seed).integers(10, vocab - 10, (batch, length))
        return draw.astype(np.int32)


def parse_arguments() -> Arguments:
    """Read the command line of a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", required=True, choices=("pt", "tf", "flax"))
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="564m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0)
    known = vars(parser.parse_args())
    return Arguments(**{**known, "shape": SHAPES[known["shape"]]})


def emit(metric: str, values: list[float], unit: str) -> None:
    """Print one result as a JSON line."""
    print(json.dumps({"metric": metric, "values": values, "unit": unit}), flush=True)


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes; it has to wait for its own result."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(arguments: Arguments, work: Callable[[], object]) -> tuple[float, list[float]]:
    """Time the first call, one warm-up call, and then the repeats.

    Returns:
        Seconds of the first call (compiling included) and of each repeat. The repeats end early
        when they have taken ``arguments.seconds``, but not before the second.
    """
    first = timed(work)
    timed(work)
    values: list[float] = []
    while len(values) < arguments.repeats and (len(values) < 2 or sum(values) < arguments.seconds):
        values.append(timed(work))
    return first, values


def emit_steady(
    arguments: Arguments, metric: str, work: Callable[[], object], scale: float, unit: str
) -> None:
    """Measure ``work``; report the repeats times ``scale``, and the first call in seconds."""
    first, values = measure(arguments, work)
    emit(metric, [value * scale for value in values], unit)
    emit(f"{metric}_first_call", [first], "s")


def emit_load(
    arguments: Arguments, load: Callable[[], object], touch: Callable[..., object]
) -> None:
    """Report seconds and peak memory of loading; ``touch`` reads every weight, lazy ones too.

    The peak is the high-water mark of resident memory above what was resident before, that is
    after the imports, over the bytes of the checkpoint. Pages of a mapped file count as well.
    """
    size = sum(f.stat().st_size for f in Path(arguments.checkpoint).glob("*.safetensors"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _memory("VmRSS")
    start = time.perf_counter()
    model = load()
    touch(model)
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM") - before
    emit("load", [seconds], "s")
    emit("load_peak_memory", [peak / size], "x model")


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def run(workers: dict[str, type]) -> None:
    """Run the task that the command line names; an error becomes a JSON line and status 1."""
    arguments = parse_arguments()
    try:
        worker = workers[arguments.backend](arguments)
        getattr(worker, arguments.task)()
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        print(json.dumps({"error": reason}), flush=True)
        sys.exit(1)


class Worker:
    """The tasks, in terms of a few hooks that a backend fills in."""

    def __init__(self, arguments: Arguments):
        self.arguments = arguments

    def load_model(self) -> object:
        """Load the model from the checkpoint, ready for inference."""
        raise NotImplementedError

    def touch(self, model: object) -> None:
        """Read every weight."""
        raise NotImplementedError

    def prefill_work(self, ids: np.ndarray) -> Callable[[], object]:
        """Work that yields the next token's logits after ``ids`` (batch, length)."""
        raise NotImplementedError

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        """Work that decodes greedily and returns all ids (batch, length + new_tokens)."""
        raise NotImplementedError

    def train_work(self, ids: np.ndarray) -> Callable[[], float]:
        """Work that does forward, backward and a step of plain SGD; returns the loss."""
        raise NotImplementedError

    def load(self) -> None:
        """Time and peak memory of loading."""
        emit_load(self.arguments, self.load_model, self.touch)

    def prefill(self) -> None:
        """Time to the logits of the next token."""
        work = self.prefill_work(self.arguments.ids(1, self.arguments.shape.prefill))
        emit_steady(self.arguments, "prefill", work, 1.0, "s")

    def decode1(self) -> None:
        """Greedy decoding of one sequence."""
        self._decode(1)

    def decode8(self) -> None:
        """Greedy decoding of eight sequences."""
        self._decode(8)

    def _decode(self, batch: int) -> None:
        shape = self.arguments.shape
        decode = self.decode_work(self.arguments.ids(batch, shape.prompt), shape.new_tokens)
        wanted = (batch, shape.prompt + shape.new_tokens)

        def work() -> None:
            found = tuple(decode().shape)
            if found != wanted:  # fewer tokens would look faster
                raise RuntimeError(f"decoding returned shape {found}, not {wanted}")

        emit_steady(self.arguments, f"decode{batch}", work, 1e3 / shape.new_tokens, "ms/token")

    def train(self) -> None:
        """One training step."""
        work = self.train_work(self.arguments.ids(1, self.arguments.shape.train))
        losses: list[float] = []
        emit_steady(self.arguments, "train", lambda: losses.append(work()), 1.0, "s")
        if not np.isfinite(losses).all() or losses[-1] >= losses[0]:
            raise RuntimeError(f"the loss does not fall: {losses}")
