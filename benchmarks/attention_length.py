"""Transformer-XL's evaluation with memories against a window that slides and recomputes.

    python benchmarks/attention_length.py --lengths 400 800 1600 3800

The paper's table 9: what does one token cost, when each may look back as far? A model without
memory that is to see ``length`` tokens before every prediction reads a window of that length anew
for each token. Ours reads segments and remembers. Both are the same model with the same weights
(random, in the paper's enwik8 shape by default: 24 layers, width 1024) in the same process; the
window remembers nothing (``mem_len=0``) and predicts its last token only.

Each figure is a median of the timed calls after two that are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHAPES = {
    # layers, width, heads, width of a head, inner width
    "large": (24, 1024, 8, 128, 3072),
    "base": (12, 512, 8, 64, 2048),
    "small": (2, 64, 2, 32, 128),
}
VOCABULARY = 204
BACKENDS = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax"}


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call after the first two: the memory of the second is of another kind."""
    work()
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def build(backend: str, shape: str, length: int):
    """A model of random weights whose memory is ``length``, and how its arrays are made."""
    import importlib

    from xlmfam import TransfoXLConfig

    layers, width, heads, head, inner = SHAPES[shape]
    config = TransfoXLConfig(
        vocab_size=VOCABULARY,
        cutoffs=[],
        d_model=width,
        d_embed=width,
        n_head=heads,
        d_head=head,
        d_inner=inner,
        n_layer=layers,
        div_val=1,
        mem_len=length,
        clamp_len=-1,
        same_length=True,
    )
    model = importlib.import_module(f"xlmfam.{backend}").TransfoXLLMHeadModel.from_config(config)
    return model.eval() if backend == "pt" else model


def remembering(backend: str, shape: str, length: int, segment: int) -> Callable[[], object]:
    """Evaluation of one segment behind a full memory; a call after the other goes on."""
    model = build(backend, shape, length)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, segment + 1))
    if backend == "pt":
        import torch

        inputs, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:])
        state = {"mems": model.init_cache(1, segment)}

        def work():
            with torch.inference_mode():
                losses, state["mems"] = model.token_losses(inputs, targets, state["mems"])
            return float(losses.sum())

        return work
    step = _compiled(backend, lambda *given: model.token_losses(*given))
    state = {"mems": model.init_cache(1, segment)}

    def work():
        losses, state["mems"] = step(ids[:, :-1], ids[:, 1:], state["mems"])
        return np.asarray(losses).sum()

    return work


def recomputing(backend: str, shape: str, length: int) -> Callable[[], object]:
    """One window of ``length`` tokens for the scores of the token after it."""
    model = build(backend, shape, 0)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, length))
    if backend == "pt":
        import torch

        inputs = torch.from_numpy(ids)

        def work():
            with torch.inference_mode():
                return model(inputs, last_logits_only=True).prediction_scores.sum().item()

        return work
    step = _compiled(backend, lambda ids: model(ids, last_logits_only=True).prediction_scores)
    return lambda: np.asarray(step(ids)).sum()


def _compiled(backend: str, function: Callable) -> Callable:
    if backend == "tf":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    import jax

    return jax.jit(function)


def measure(backend: str, shape: str, length: int, segment: int, repeats: int) -> dict[str, float]:
    """Seconds for a token, with a memory and with a window."""
    memory = timed(remembering(backend, shape, length, segment), repeats) / segment
    window = timed(recomputing(backend, shape, length), repeats)
    return {"length": length, "memory": memory, "window": window, "ratio": window / memory}


def main() -> None:
    """Run what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[400, 800, 1600, 3800])
    parser.add_argument("--segment", type=int, default=128, help="tokens of a segment (128)")
    parser.add_argument("--shape", choices=SHAPES, default="large")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["pt"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for attention-length.json")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    found = {}
    print("| attention length | backend | with memories | sliding window | ratio |")
    print("|---:|---|---:|---:|---:|")
    for backend in arguments.backends:
        for length in arguments.lengths:
            given = (arguments.shape, length, arguments.segment, arguments.repeats)
            row = measure(backend, *given)
            found.setdefault(backend, []).append(row)
            print(
                f"| {length} | {BACKENDS[backend]} | {row['memory'] * 1e3:.2f} ms "
                f"| {row['window'] * 1e3:.0f} ms | {row['ratio']:.0f} x |",
                flush=True,
            )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"shape": arguments.shape, "found": found}, indent=2)
        (arguments.out / "attention-length.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
