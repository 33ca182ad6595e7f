"""Checks of values, made where looking at them is cheap: on the CPU, outside of compilers."""

from __future__ import annotations

import torch
from torch import Tensor

from xlmfam.common.errors import XlmfamError

IGNORED = -100  # the label that does not count


def is_cheap(values: Tensor) -> bool:
    """Whether looking at values costs nothing: on the CPU, outside of any compiler."""
    return (
        values.device.type == "cpu"
        and type(values) is Tensor
        and bool(values.numel())
        and not torch.compiler.is_compiling()
    )


def is_exporting() -> bool:
    """Whether a graph is being made that has to serve inputs of all lengths."""
    return bool(getattr(torch.compiler, "is_exporting", bool)())


def known_to_be_full(mask: Tensor) -> bool:
    """Whether nothing is padded, where looking is cheap."""
    return is_cheap(mask) and bool(mask.all())


def check_range(name: str, values: Tensor, least: int, most: int) -> None:
    """Raise ``XlmfamError`` unless all values lie in [least, most], where looking is cheap."""
    if not is_cheap(values):
        return
    low, high = (int(value) for value in torch.aminmax(values))
    if low < least or high > most:
        wrong = low if low < least else high
        raise XlmfamError(f"{name} holds {wrong}, outside [{least}, {most}]")


def check_labels(labels: Tensor | None, count: int) -> None:
    """Raise ``XlmfamError`` for classes that are not there, where looking is cheap."""
    if labels is not None and is_cheap(labels):
        check_range("labels", labels[labels != IGNORED], 0, count - 1)
