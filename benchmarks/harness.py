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
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of the work given to it; a task uses those it has a word for."""

    config: dict[str, Any]
    prefill: int = 512
    prompt: int = 16
    new_tokens: int = 32
    train: int = 128
    rows: int = 4
    length: int = 128

    @property
    def labelled(self) -> int:
        """Number of positions with a label in masked-LM training: 15 %."""
        return round(0.15 * self.rows * self.length)


@dataclass(frozen=True)
class Model:
    """A model that can be compared.

    Attributes:
        family: Name of its parameter table.
        head: The class that the checkpoint is of.
        tasks: What is measured.
        peer_backends: Frameworks that transformers 4.37.2 has it in.
        shapes: Full size, and a small one to try things out.
        suffix: Of the names of its workers.
        warm_ups: Calls between the first and the timed ones.
        repeats: Timed calls per process.
    """

    family: str
    head: str
    tasks: tuple[str, ...]
    peer_backends: tuple[str, ...]
    shapes: dict[str, Shape]
    suffix: str = ""
    warm_ups: int = 1
    repeats: int = 5


_XGLM = {
    "vocab_size": 256008,
    "d_model": 1024,
    "ffn_dim": 4096,
    "num_layers": 24,
    "attention_heads": 16,
}
_XGLM_SMALL = {
    "vocab_size": 8008,
    "d_model": 128,
    "ffn_dim": 512,
    "num_layers": 4,
    "attention_heads": 4,
}
# No dropout, so that the losses of all sides can be held against each other.
_XLM = {
    "vocab_size": 30145,
    "emb_dim": 2048,
    "n_layers": 12,
    "n_heads": 16,
    "n_langs": 1,
    "max_position_embeddings": 512,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
_XLM_SMALL = {**_XLM, "vocab_size": 1000, "emb_dim": 64, "n_layers": 2, "n_heads": 4}
# As many languages as the published checkpoints have; what they are called makes no difference.
_XMOD = {
    "vocab_size": 250002,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "adapter_reduction_factor": 2,
    "adapter_reuse_layer_norm": True,
    "ln_before_adapter": True,
    "languages": [f"l{number:02}_XX" for number in range(81)],
    "default_language": None,
}
_XMOD_SMALL = {
    **_XMOD,
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
# No dropout, as above.
_TRANSFO_XL = {
    "vocab_size": 267735,
    "cutoffs": [20000, 40000, 200000],
    "d_model": 1024,
    "d_embed": 1024,
    "n_head": 16,
    "d_head": 64,
    "d_inner": 4096,
    "div_val": 4,
    "n_layer": 18,
    "mem_len": 1600,
    "clamp_len": 1000,
    "same_length": True,
    "dropout": 0.0,
}
_TRANSFO_XL_SMALL = {
    **_TRANSFO_XL,
    "vocab_size": 1000,
    "cutoffs": [200, 400],
    "d_model": 64,
    "d_embed": 64,
    "n_head": 4,
    "d_head": 16,
    "d_inner": 128,
    "n_layer": 2,
    "mem_len": 100,
}

MODELS = {
    "xglm-564m": Model(
        "xglm",
        "XGLMForCausalLM",
        ("load", "prefill", "decode1", "decode8", "train"),
        ("pt", "tf", "flax"),
        {"full": Shape(_XGLM), "small": Shape(_XGLM_SMALL, prefill=64)},
    ),
    # Its calls take seconds and are all alike: two are enough, and the first is warm-up enough.
    "xlm-en-2048": Model(
        "xlm",
        "XLMWithLMHeadModel",
        ("encode", "mlm"),
        ("pt", "tf"),
        {"full": Shape(_XLM), "small": Shape(_XLM_SMALL, rows=2, length=32)},
        suffix="_xlm",
        warm_ups=0,
        repeats=2,
    ),
    # Its calls with a whole memory take seconds at the peer.
    "transfo-xl-wt103": Model(
        "transfo-xl",
        "TransfoXLLMHeadModel",
        ("decode", "segment", "train_segment"),
        ("pt",),
        {
            "full": Shape(_TRANSFO_XL, length=128, prompt=16, new_tokens=16),
            "small": Shape(_TRANSFO_XL_SMALL, length=32, prompt=4, new_tokens=8),
        },
        suffix="_transfo_xl",
        repeats=3,
    ),
    "xmod-base": Model(
        "xmod",
        "XmodModel",
        ("load", "one", "two", "sixteen"),
        ("pt",),
        {
            "full": Shape(_XMOD, rows=16, length=64),
            "small": Shape(_XMOD_SMALL, rows=16, length=16),
        },
        suffix="_xmod",
    ),
}


@dataclass(frozen=True)
class Arguments:
    """What a worker is asked to do."""

    backend: str
    task: str
    checkpoint: str
    model: Model
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
    parser.add_argument("--task", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", choices=tuple(MODELS), required=True)
    parser.add_argument("--shape", choices=("full", "small"), required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    known = vars(parser.parse_args())
    model = MODELS[known["model"]]
    return Arguments(**{**known, "model": model, "shape": model.shapes[known["shape"]]})


def emit(metric: str, values: list[float], unit: str) -> None:
    """Print one result as a JSON line."""
    print(json.dumps({"metric": metric, "values": values, "unit": unit}), flush=True)


def emit_check(values: list[float]) -> None:
    """Print numbers that all sides have to agree on as a JSON line."""
    print(json.dumps({"check": values}), flush=True)


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes; it has to wait for its own result."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(arguments: Arguments, work: Callable[[], object]) -> tuple[float, list[float]]:
    """Time the first call, and after the model's warm-up calls the repeats.

    Returns:
        Seconds of the first call (compiling included) and of each repeat. The repeats end early
        when they have taken ``arguments.seconds``, but not before the second.
    """
    first = timed(work)
    for _ in range(arguments.model.warm_ups):
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
    """The tasks of a causal model, in terms of a few hooks that a backend fills in."""

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


class LanguagesWorker:
    """The tasks of a model with an adapter for each language, in terms of a few hooks."""

    def __init__(self, arguments: Arguments):
        self.arguments = arguments

    def load_model(self) -> object:
        """Load the model from the checkpoint; where that can be chosen, with one language."""
        raise NotImplementedError

    def touch(self, model: object) -> None:
        """Read every weight."""
        raise NotImplementedError

    def encode_work(self, ids: np.ndarray, languages: np.ndarray) -> Callable[[], np.ndarray]:
        """Work that returns the hidden states (batch, length, width) of ``ids``.

        Args:
            ids: Tokens (batch, length).
            languages: Numbers of their languages (batch,).
        """
        raise NotImplementedError

    def load(self) -> None:
        """Time and peak memory of loading."""
        emit_load(self.arguments, self.load_model, self.touch)

    def one(self) -> None:
        """Encode a batch of one language."""
        self._encode("one", 1)

    def two(self) -> None:
        """Encode a batch in which two languages take turns."""
        self._encode("two", 2)

    def sixteen(self) -> None:
        """Encode a batch of sixteen languages."""
        self._encode("sixteen", 16)

    def _encode(self, metric: str, count: int) -> None:
        shape = self.arguments.shape
        ids = self.arguments.ids(shape.rows, shape.length)
        # Not the first languages, nor neighbours.
        languages = (np.arange(shape.rows) % count * 5 + 3).astype(np.int32)
        work = self.encode_work(ids, languages)
        hidden: list[np.ndarray] = []
        emit_steady(self.arguments, metric, lambda: hidden.append(work()), 1.0, "s")
        emit_check([projected_norm(hidden[0])])


def projected_norm(hidden: np.ndarray) -> float:
    """The norm along a random direction; the norms themselves are fixed by the last layer norm."""
    direction = np.random.default_rng(1).standard_normal(hidden.shape[-1])
    return float(np.linalg.norm(hidden @ direction))


class MemoryWorker:
    """The tasks of a model with memories, in terms of a few hooks that a backend fills in."""

    def __init__(self, arguments: Arguments):
        self.arguments = arguments

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        """Work that decodes greedily behind a whole memory; returns all ids."""
        raise NotImplementedError

    def segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        """Work that returns the loss of ``ids`` (1, length) behind the calls before."""
        raise NotImplementedError

    def train_segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        """Work that does forward, backward and a step of plain SGD; returns the loss."""
        raise NotImplementedError

    def decode(self) -> None:
        """Greedy decoding of one sequence."""
        shape = self.arguments.shape
        work = self.decode_work(self.arguments.ids(1, shape.prompt), shape.new_tokens)
        found: list[np.ndarray] = []
        emit_steady(
            self.arguments,
            "decode",
            lambda: found.append(work()),
            1e3 / shape.new_tokens,
            "ms/token",
        )
        if found[0].shape != (1, shape.prompt + shape.new_tokens):
            raise RuntimeError(f"decoding returned shape {found[0].shape}")
        emit_check([1.0 + float(token) for token in found[0][0]])

    def segment(self) -> None:
        """Evaluation of one segment."""
        work, losses = self.segment_work(self.arguments.ids(1, self.arguments.shape.length)), []
        emit_steady(self.arguments, "segment", lambda: losses.append(work()), 1.0, "s")
        emit_check(losses[:2])

    def train_segment(self) -> None:
        """One training step on one segment."""
        ids = self.arguments.ids(1, self.arguments.shape.length)
        work, losses = self.train_segment_work(ids), []
        emit_steady(self.arguments, "train_segment", lambda: losses.append(work()), 1.0, "s")
        if not np.isfinite(losses).all() or losses[-1] >= losses[0]:
            raise RuntimeError(f"the loss does not fall: {losses}")
        emit_check(losses[:2])


class MaskedWorker:
    """The tasks of a masked model, in terms of hooks that a backend fills in."""

    def __init__(self, arguments: Arguments):
        self.arguments = arguments

    def encode_work(self, ids: np.ndarray) -> Callable[[], np.ndarray]:
        """Work that returns the hidden states (batch, length, width) of ``ids``."""
        raise NotImplementedError

    def mlm_work(self, ids: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
        """Work that does forward, backward and a step of plain SGD; returns the loss."""
        raise NotImplementedError

    def encode(self) -> None:
        """Encode a batch without padding."""
        shape = self.arguments.shape
        work = self.encode_work(self.arguments.ids(shape.rows, shape.length))
        hidden: list[np.ndarray] = []
        emit_steady(self.arguments, "encode", lambda: hidden.append(work()), 1.0, "s")
        emit_check([projected_norm(hidden[0])])

    def mlm(self) -> None:
        """One training step of masked language modelling."""
        ids, labels = self.masked()
        work = self.mlm_work(ids, labels)
        losses: list[float] = []
        emit_steady(self.arguments, "mlm", lambda: losses.append(work()), 1.0, "s")
        if not np.isfinite(losses).all() or losses[-1] >= losses[0]:
            raise RuntimeError(f"the loss does not fall: {losses}")
        # The second loss shows that the gradients are the same as well.
        emit_check(losses[:2])

    def masked(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ids with masks in them, and labels, -100 where nothing is masked: int32."""
        shape = self.arguments.shape
        ids = self.arguments.ids(shape.rows, shape.length)
        draw = np.random.default_rng(2).choice(ids.size, shape.labelled, replace=False)
        labels = np.full_like(ids, -100)
        labels.flat[draw] = ids.flat[draw]
        ids.flat[draw] = 5  # XLM's mask_index
        return ids, labels
