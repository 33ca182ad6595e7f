"""What a checkpoint holds, read from its headers alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import LoadPlan, layout_shape, parameter_count
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
    return plan, [f"new: {name} is not in the file and would start untrained" for name in plan.new]


def _tensors(checkpoint: OpenCheckpoint, plan: LoadPlan) -> list[TensorEntry]:
    """Every parameter in canonical name and layout; as they are in the file if it does not fit."""
    specs = checkpoint.source.specs()
    if not plan.sources:
        return [
            TensorEntry(name, name, spec.shape, spec.dtype.name, spec.nbytes)
            for name, spec in specs.items()
        ]
    parameters = checkpoint.table.expand(checkpoint.config, checkpoint.head)
    return [
        TensorEntry(
            name,
            stored,
            layout_shape(parameters[name], "canonical"),
            specs[stored].dtype.name,
            specs[stored].nbytes,
        )
        for name, stored in sorted(plan.sources.items(), key=_layer_order(plan))
    ]


def _layer_order(plan: LoadPlan) -> Callable[[tuple[str, str]], tuple[int, int]]:
    """Sort key: what comes before the layers, layer after layer, what comes behind."""
    numbers = {name: re.search(r"\.(\d+)\.", name) for name in plan.sources}
    names = list(plan.sources)
    numbered = [index for index, name in enumerate(names) if numbers[name]]
    first = numbered[0] if numbered else 0

    def key(item: tuple[str, str]) -> tuple[int, int]:
        number = numbers[item[0]]
        if number:
            return 1, int(number[1])
        return (0 if names.index(item[0]) < first else 2), 0

    return key
