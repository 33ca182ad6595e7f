"""What a checkpoint holds, read from its headers alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from xlmfam.common.checkpoints.models import is_floating
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import LoadPlan, Parameter, layout_shape, parameter_count
from xlmfam.conversion.report import Contents, TensorEntry
from xlmfam.conversion.sources import OpenCheckpoint, file_of, recognise


def inspect(
    source: str | os.PathLike[str],
    *,
    head: str | None = None,
    format: str | None = None,
    **hub: Any,
) -> Contents:
    """Describe a checkpoint without reading any weights.

    Args:
        source: Folder, file of weights, or hub id.
        head: Class of the checkpoint where its config does not say or is wrong.
        format: Look only at ``safetensors``, ``pt``, ``tf`` or ``flax``.
        **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``.

    Returns:
        Family, class, parameters, and everything that would keep it from being loaded.

    Raises:
        CheckpointError: When there is no checkpoint, or its headers cannot be read.
        ConfigError: When its config is missing or of a family that is not ours.
    """
    with recognise(source, head=head, format=format, **hub) as checkpoint:
        plan, problems = _plan(checkpoint)
        parameters = checkpoint.table.expand(checkpoint.config, checkpoint.head)
        return Contents(
            source=os.fspath(source),
            family=checkpoint.config.model_type,
            head=checkpoint.head,
            format=checkpoint.format,
            file=file_of(checkpoint.source).name,
            parameters=parameter_count(parameters),
            nbytes=sum(spec.nbytes for spec in checkpoint.source.specs().values()),
            tensors=_tensors(checkpoint, plan),
            ties={p.name: p.tied_to for p in parameters.values() if p.tied_to is not None},
            dropped=plan.dropped,
            problems=problems,
            config=checkpoint.config.to_diff_dict(),
        )


def _plan(checkpoint: OpenCheckpoint) -> tuple[LoadPlan, list[str]]:
    """Hold the file against the table; what does not fit is listed, not raised."""
    try:
        plan = checkpoint.plan()
    except CheckpointError as error:
        return LoadPlan(), [line.strip() for line in str(error).splitlines()]
    specs = checkpoint.source.specs()
    problems = [f"new: {name} is not in the file and would start untrained" for name in plan.new]
    problems += [
        f"dtype: {name} holds {specs[name].dtype.name}; parameters must be floating-point"
        for name in plan.sources.values()
        if not is_floating(specs[name].dtype)
    ]
    return plan, problems


def _tensors(checkpoint: OpenCheckpoint, plan: LoadPlan) -> list[TensorEntry]:
    """Every parameter in canonical name and layout; as they are in the file if it does not fit."""
    specs = checkpoint.source.specs()
    if not plan.sources:
        return [
            TensorEntry(name, name, spec.shape, spec.dtype.name, spec.nbytes)
            for name, spec in specs.items()
        ]
    parameters = checkpoint.table.expand(checkpoint.config, checkpoint.head)
    entries = []
    for name in sorted(plan.sources, key=_layer_order(parameters)):
        stored = plan.sources[name]
        shape = layout_shape(parameters[name], "canonical")
        spec = specs[stored]
        entries.append(TensorEntry(name, stored, shape, spec.dtype.name, spec.nbytes))
    return entries


def _layer_order(parameters: Mapping[str, Parameter]) -> Callable[[str], tuple[int, int]]:
    """Sort key: what comes before the layers, layer after layer, what comes behind."""
    names = list(parameters)
    inside = [index for index, p in enumerate(parameters.values()) if p.layer is not None]
    first = inside[0] if inside else 0

    def key(name: str) -> tuple[int, int]:
        layer = parameters[name].layer
        if layer is not None:
            return 1, layer
        return (0 if names.index(name) < first else 2), 0

    return key
