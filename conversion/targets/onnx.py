"""ONNX: the PyTorch model as a graph for ONNX Runtime and its like.

Keys and values, or the memory of Transformer-XL, are inputs (``past_key_values.0.key``,
``mems.0``) and outputs (``present.0.key``, ``new_mems.0``) of the same graph that reads a prompt:
there are no keys before it, and zeros are its memory.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import DTYPES
from xlmfam.common.errors import CheckpointError, MissingPackageError
from xlmfam.common.logging import get_logger
from xlmfam.conversion.targets import Work
from xlmfam.conversion.targets.signatures import Input, signature_of

logger = get_logger(__name__)
FILE_NAME = "model.onnx"
# Larger weights lie in a file beside the graph: what protobuf holds at once is at most 2 GB.
MOST_BYTES_INSIDE = 1 << 30
TOLERANCE = 5e-5
_INSTALL = 'pip install "xlmfam[onnx]"'
# None of them equal, and none 0 or 1, which an exporter takes for constants.
_EXAMPLE = {"batch": 2, "choices": 3, "length": 5, "past": 4, "target": 6, "source": 7}
# What the finished graph is tried with: a prompt, a step behind it, several tokens behind others.
_TRIALS = ({"batch": 1, "length": 4, "past": 0}, {"length": 1, "past": 4}, {"length": 3, "past": 6})


def write(work: Work) -> None:
    """Write ``model.onnx``, and ``model.onnx.data`` beside it where the weights are large.

    Where ONNX Runtime is installed, the graph is run and compared with the model first.

    Raises:
        MissingPackageError: PyTorch or the exporter is not installed.
        CheckpointError: The dtype cannot be exported, or the graph gives other results.
    """
    for package in ("torch", "onnx", "onnxscript"):
        require(package)
    dtype = work.reader.dtype or DTYPES["float32"]
    if dtype not in (DTYPES["float32"], DTYPES["float16"]):
        raise CheckpointError(f"onnx is written in float32 or float16, not in {dtype.name}")
    torch = importlib.import_module("torch")
    graphs = importlib.import_module("xlmfam.conversion.targets.torch_graph")
    signature = signature_of(work.config, work.head)
    graph = graphs.Graph(graphs.build(work, dtype), signature)
    path = work.folder / FILE_NAME
    shortest = shortest_text(work)
    with torch.no_grad(), quiet():
        export(graph, path, dtype, shortest)
    if dtype == DTYPES["float32"]:
        prove(graph, path, shortest)


def shortest_text(work: Work) -> int:
    """Return how many tokens a text needs at least."""
    if work.head != "XLMForQuestionAnswering":
        return 1
    return max(work.config.start_n_top, work.config.end_n_top)  # its beam is that wide


def require(package: str) -> Any:
    """Import a package.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(package, "writing ONNX", _INSTALL) from error


@contextmanager
def quiet():
    """Keep the exporter's remarks about what it is itself to itself."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)


def export(graph: Any, path: Path, dtype: np.dtype, shortest: int = 1) -> None:
    """Write the graph of a model.

    Args:
        graph: A `torch_graph.Graph`.
        path: The file.
        dtype: Of the weights.
        shortest: Tokens that a text has at least.
    """
    torch = importlib.import_module("torch")
    signature, config = graph.signature, graph.model.config
    sizes = {**_EXAMPLE, "length": _EXAMPLE["length"] + shortest - 1}
    sizes["total"] = sizes["length"] + sizes["past"]
    inputs = examples(signature.inputs, sizes, config, dtype)
    memory = examples(signature.memory, sizes, config, dtype)
    arguments = tuple([torch.from_numpy(a) for a in group] for group in (inputs, memory))
    names = list(graph.named(*arguments))
    shapes = tuple(
        [{i: size for i, size in enumerate(each.shape) if isinstance(size, str)} for each in group]
        for group in (signature.inputs, signature.memory)
    )
    weights = sum(p.nbytes for p in graph.model.parameters())
    torch.onnx.export(
        graph,
        arguments,
        path,
        dynamo=True,
        input_names=[each.name for each in signature.every],
        output_names=names,
        dynamic_shapes=shapes,
        external_data=weights > MOST_BYTES_INSIDE,
        verbose=False,
        optimize=True,
    )


def examples(
    inputs: tuple[Input, ...],
    sizes: Mapping[str, int],
    config: Any,
    dtype: np.dtype,
    seed: int = 0,
    padded: bool = True,
) -> list[np.ndarray]:
    """Return an array for each input.

    Args:
        inputs: The inputs.
        sizes: Numbers for the sizes that have names.
        config: Says which ids there are.
        dtype: Of what is floating.
        seed: Draws the values.
        padded: Let some texts begin with padding. A beam of answers is too wide for that: what
            is equally unlikely may come in any order.
    """
    rng = np.random.default_rng(seed)
    found = []
    for each in inputs:
        shape = each.sized(sizes)
        if each.floating:
            found.append(rng.normal(size=shape).astype(dtype))
        elif each.name.endswith("attention_mask"):
            mask = np.ones(shape, np.int64)
            if padded and ("total" not in each.shape or sizes["past"] == 0):
                mask[-1, ..., : shape[-1] // 3] = 0
            found.append(mask)
        else:
            most = config.n_langs if "lang" in each.name else config.vocab_size
            least = 0 if "lang" in each.name else min(4, most - 1)
            found.append(rng.integers(least, most, shape, np.int64))
    return found


def prove(graph: Any, path: Path, shortest: int = 1) -> None:
    """Run the file in ONNX Runtime and compare what comes out with the model.

    Raises:
        CheckpointError: They differ.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        logger.warning("onnxruntime is not installed: %s has not been tried (%s)", path, _INSTALL)
        return
    torch = importlib.import_module("torch")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    signature, config = graph.signature, graph.model.config
    for number, trial in enumerate(_TRIALS):
        sizes = {**_EXAMPLE, **trial}
        sizes["length"] += shortest - 1
        sizes["total"] = sizes["length"] + sizes["past"]
        groups = [
            examples(each, sizes, config, DTYPES["float32"], number, shortest == 1)
            for each in (signature.inputs, signature.memory)
        ]
        arrays = [array for group in groups for array in group]
        with torch.no_grad():
            wanted = graph.named(*([torch.from_numpy(a) for a in group] for group in groups))
        names = [each.name for each in signature.every]
        came = session.run(list(wanted), dict(zip(names, arrays, strict=True)))
        for name, got in zip(wanted, came, strict=True):
            _compare(path, name, wanted[name].numpy(), got)


def _compare(path: Path, name: str, wanted: np.ndarray, got: np.ndarray) -> None:
    scale = max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    same = wanted.shape == got.shape
    if not same or not np.max(np.abs(wanted - got), initial=0.0) <= TOLERANCE * scale:
        raise CheckpointError(f"{path}: ONNX Runtime computes other {name} than PyTorch does")
