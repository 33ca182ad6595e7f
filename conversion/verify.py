"""One checkpoint in every backend: do they compute the same?"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.files import FORMATS
from xlmfam.common.errors import XlmfamError
from xlmfam.common.logging import progress as progress_bar
from xlmfam.common.parameters import table_of
from xlmfam.conversion.examples import LABELS, Inputs, example_inputs
from xlmfam.conversion.report import Comparison, Conversion, Verification
from xlmfam.conversion.runners import (
    BACKENDS,
    FRAMEWORKS,
    Observation,
    installed_backends,
    observe,
    require_backend,
)
from xlmfam.conversion.sources import recognise

Source = str | os.PathLike[str]


def verify(
    source: Source | Mapping[str, Source],
    backends: Sequence[str] | None = None,
    tolerance: float = 5e-5,
    *,
    inputs: Inputs | None = None,
    gradients: bool = True,
    seed: int = 0,
    head: str | None = None,
    jit: bool = False,
    **hub: Any,
) -> Verification:
    """Run a checkpoint in several backends, in float32, and compare everything that comes out.

    Hidden states of every layer, what the head says (logits, or the probabilities of answers),
    loss and the gradient of every parameter are compared for each pair of backends. A difference
    is relative to the largest value compared; a value that is not finite counts as a difference
    of its own.

    Args:
        source: Folder, file or hub id; or one for each backend, to compare copies of a
            checkpoint in different formats.
        backends: Some of ``pt``, ``tf``, ``flax``; by default those that are installed.
        tolerance: Largest difference allowed.
        inputs: ``input_ids``, ``attention_mask`` and the labels of the class, and what else it
            takes; by default an example with padding on both sides and all languages.
        gradients: Whether to compare gradients, which take most of the memory.
        seed: Draws the example.
        head: Class of the checkpoint where its config does not say or is wrong.
        jit: Compile whole calls (Flax only), which is the faster way for a model of few layers.
        **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``.

    Returns:
        The differences, and what could not be run; its ``ok`` is the verdict.

    Raises:
        CheckpointError: When there is no checkpoint, or it does not fit its config.
        XlmfamError: When there are not two backends to compare, or no labels for a head's loss.
    """
    if not 0 < tolerance < math.inf:
        raise XlmfamError(f"tolerance must be a positive number, got {tolerance!r}")
    chosen = _chosen(backends, source)
    sources = dict(source) if isinstance(source, Mapping) else dict.fromkeys(chosen, source)
    name = ", ".join(dict.fromkeys(os.fspath(sources[backend]) for backend in chosen))
    with recognise(sources[chosen[0]], head=head, **hub) as checkpoint:
        checkpoint.plan()  # before any framework is loaded
        config, head, table = checkpoint.config, checkpoint.head, checkpoint.table
    inputs = example_inputs(config, head, seed) if inputs is None else inputs
    if head != table.base and not set(LABELS) & set(inputs):
        raise XlmfamError(f"inputs has no labels, which {head} needs for its loss")
    with tempfile.TemporaryDirectory(prefix="xlmfam-verify-") as room:
        distinct = dict.fromkeys(os.fspath(sources[backend]) for backend in chosen)
        ready = {
            one: _ready(one, head, Path(room) / str(number), hub)
            for number, one in enumerate(distinct)
        }
        found, failures = _observe_all(
            {backend: (backend, *ready[os.fspath(sources[backend])]) for backend in chosen},
            inputs,
            gradients,
            head=head,
            jit=jit,
        )
    return _verification(name, config, head, found, failures, tolerance, inputs)


def _ready(
    source: Source, head: str, room: Path, hub: Mapping[str, Any]
) -> tuple[Source, Mapping[str, Any]]:
    """Return what models load: the checkpoint, or a conversion of one that they do not."""
    try:
        with recognise(source, head=head, **hub) as checkpoint:
            found = checkpoint.format
        return _runnable(source, found, head, room, {}, hub)
    except XlmfamError:
        return source, hub  # loading it says what is wrong, and is a failure of its backend


def verify_conversion(
    conversion: Conversion,
    source: Source | None = None,
    backends: Sequence[str] | None = None,
    tolerance: float = 5e-5,
    *,
    gradients: bool = True,
    seed: int = 0,
    **hub: Any,
) -> Verification:
    """Run what a conversion has written in several backends, and compare it with the source.

    The source runs in the first backend. An original release, and a source of which not all or
    not in its own dtype was carried over, is converted into a temporary folder for that.

    Args:
        conversion: What `convert` returned.
        source: Where the source is by now; by default where it was.
        backends: Some of ``pt``, ``tf``, ``flax``; by default those that are installed.
        tolerance: Largest difference allowed.
        gradients: Whether to compare gradients, which take most of the memory.
        seed: Draws the example.
        **hub: Where on the hub the source is.

    Returns:
        The differences; ``source`` stands in it beside the backends.

    Raises:
        CheckpointError: The source or the target is gone or damaged.
        XlmfamError: No backend is installed, or what was written can only be run elsewhere.
    """
    if conversion.format in ("savedmodel", "onnx"):
        raise XlmfamError(
            f"what was written is a program ({conversion.format}), which no backend loads; verify "
            "a conversion to safetensors of the same source"
        )
    chosen = [b for b in BACKENDS if b in (installed_backends() if backends is None else backends)]
    for backend in chosen:
        require_backend(backend)
    if not chosen:
        raise XlmfamError('there is no backend to run it; pip install "xlmfam[pt]" brings one')
    with tempfile.TemporaryDirectory(prefix="xlmfam-verify-") as room:
        told = {key: conversion.options.get(key) for key in ("dtype", "languages")}
        before, options = _runnable(
            conversion.source if source is None else source,
            conversion.source_format,
            conversion.head,
            Path(room) / "source",
            told,
            hub,
        )
        after, _ = _runnable(
            conversion.target, conversion.format, conversion.head, Path(room) / "target", {}, {}
        )
        with recognise(after, head=conversion.head) as checkpoint:
            config, head = checkpoint.config, checkpoint.head
        inputs = example_inputs(config, head, seed)
        found, failures = _observe_all(
            {"source": (chosen[0], before, options), **{b: (b, after, {}) for b in chosen}},
            inputs,
            gradients,
            head=head,
        )
    name = f"{conversion.target} against {conversion.source}"
    return _verification(name, config, head, found, failures, tolerance, inputs)


def _runnable(
    source: Source,
    format: str,
    head: str,
    room: Path,
    told: Mapping[str, Any],
    hub: Mapping[str, Any],
) -> tuple[Source, dict[str, Any]]:
    """Return a checkpoint that models load, and with which arguments."""
    from xlmfam.conversion.convert import convert

    if format in FORMATS and not any(told.values()):
        return source, {**hub, "format": format}
    convert(source, room, head=head, source_format=format, progress=False, **told, **hub)
    return room, {}


def _observe_all(
    runs: Mapping[str, tuple[str, Source, Mapping[str, Any]]],
    inputs: Inputs,
    gradients: bool,
    *,
    head: str,
    jit: bool = False,
) -> tuple[dict[str, Observation], dict[str, str]]:
    """Run checkpoints by what they are called; returns what came of it and what failed."""
    found: dict[str, Observation] = {}
    failures: dict[str, str] = {}
    for name, (backend, source, options) in progress_bar(list(runs.items()), "Verifying"):
        try:
            seen = observe(backend, source, inputs, gradients, head=head, jit=jit, **options)
            found[name] = replace(seen, backend=name)
        except (XlmfamError, ImportError, MemoryError) as error:
            failures[name] = str(error) or type(error).__name__
    return found, failures


def _verification(
    name: str,
    config: Any,
    head: str,
    found: Mapping[str, Observation],
    failures: Mapping[str, str],
    tolerance: float,
    inputs: Inputs,
) -> Verification:
    expected = table_of(config.model_type).expand(config, head)
    layers = {key: p.layer for key, p in expected.items()}
    comparisons = [
        comparison
        for one, other in itertools.combinations(found.values(), 2)
        for comparison in compare(one, other, _masks(inputs), layers)
    ]
    return Verification(
        source=name,
        head=head,
        backends=list(found),
        tolerance=tolerance,
        comparisons=comparisons,
        failures=dict(failures),
        seconds={backend: o.seconds for backend, o in found.items()},
        losses={backend: o.loss for backend, o in found.items()},
    )


def _chosen(backends: Sequence[str] | None, source: Source | Mapping[str, Source]) -> list[str]:
    """The backends to run, in the order in which their frameworks can share a process."""
    if backends is None:
        given = source if isinstance(source, Mapping) else BACKENDS
        backends = [backend for backend in installed_backends() if backend in given]
    for backend in backends:
        require_backend(backend)
    if len(set(backends)) < 2:
        names = ", ".join(FRAMEWORKS[backend] for backend in backends) or "none"
        raise XlmfamError(
            f"there is nothing to compare: verify needs two backends and has {names}; "
            'pip install "xlmfam[all]" brings all three'
        )
    if isinstance(source, Mapping) and not set(backends) <= set(source):
        raise XlmfamError(f"source names no checkpoint for {', '.join(set(backends) - {*source})}")
    return [backend for backend in BACKENDS if backend in backends]


def _masks(inputs: Inputs) -> list[np.ndarray]:
    """(rows, S), true where a token is not padding; a translation model has one for each side."""
    # What is padding in the states of an encoder is none of the results.
    names = [n for n in inputs if n.endswith("attention_mask") and not n.startswith("encoder_")]
    return [np.asarray(inputs[name]).reshape(-1, inputs[name].shape[-1]) == 1 for name in names]


def compare(
    one: Observation,
    other: Observation,
    masks: Sequence[np.ndarray],
    layers: Mapping[str, int | None],
) -> Iterator[Comparison]:
    """Yield the largest difference in every part of the results, in the order of the model.

    Args:
        one: An observation.
        other: Another one, of the same inputs.
        masks: (B, S) each, true where a token is not padding; nothing else has a meaning.
        layers: The layer of each parameter, if it is in one.
    """
    pair = (one.backend, other.backend)
    parts = (("state", one.states, other.states), ("logits", one.predictions, other.predictions))
    for kind, mine, theirs in parts:
        for name in dict.fromkeys([*mine, *theirs]):
            values = (_at(mine.get(name), masks), _at(theirs.get(name), masks))
            yield Comparison(name, kind, pair, difference(*values))
    yield Comparison("loss", "loss", pair, difference(np.array(one.loss), np.array(other.loss)))
    yield from _compare_gradients(one, other, pair, layers)


def _at(values: np.ndarray | None, masks: Sequence[np.ndarray]) -> np.ndarray | None:
    """Values at the tokens; those that do not lie token by token are all of them."""
    for mask in masks:
        if values is not None and values.shape[:2] == mask.shape:
            return values[mask]
    return values


def difference(
    one: np.ndarray | None, other: np.ndarray | None, scale: float | None = None
) -> float:
    """Return the largest difference relative to the largest value, NaN where it has none.

    Args:
        one: An array; ``None`` where it is missing.
        other: Another one.
        scale: What to be relative to; by default the largest value of the two.
    """
    if one is None or other is None or one.shape != other.shape:
        return math.nan
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return math.nan
    if not one.size:
        return 0.0
    if scale is None:
        scale = largest(one, other)
    distance = float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64))))
    return distance / scale if scale else distance


def largest(*arrays: np.ndarray) -> float:
    """Return the largest absolute value."""
    return max(float(np.max(np.abs(array), initial=0.0)) for array in arrays)


def _compare_gradients(
    one: Observation,
    other: Observation,
    pair: tuple[str, str],
    layers: Mapping[str, int | None],
) -> Iterator[Comparison]:
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys([*one.gradients, *other.gradients]):
        groups.setdefault(_group(layers.get(name)), []).append(name)
    for group, names in groups.items():
        # Relative to the layer: a bias before a softmax has a gradient of rounding errors only.
        known = [o.gradients[n] for o in (one, other) for n in names if n in o.gradients]
        scale = largest(*known)
        differences = {
            name: difference(one.gradients.get(name), other.gradients.get(name), scale)
            for name in names
        }
        worst = max(differences, key=lambda n: (math.isnan(differences[n]), differences[n]))
        yield Comparison(f"gradients, {group}", "gradient", pair, differences[worst], worst)


def _group(layer: int | None) -> str:
    return "other" if layer is None else f"layer {layer}"
