"""Names and layouts of parameters in each framework and file format, from their kind alone."""

from __future__ import annotations

from typing import Literal

import numpy as np

from xlmfam.common.parameters.table import Kind, Parameter

Spelling = Literal["canonical", "flax", "keras", "keras_h5"]

LEAVES = {
    "keras": {
        Kind.LINEAR: "kernel",
        Kind.BIAS: "bias",
        Kind.NORM_SCALE: "gamma",
        Kind.NORM_SHIFT: "beta",
        Kind.EMBEDDING: "embeddings",
    },
    "flax": {
        Kind.LINEAR: "kernel",
        Kind.BIAS: "bias",
        Kind.NORM_SCALE: "scale",
        Kind.NORM_SHIFT: "bias",
        Kind.EMBEDDING: "embedding",
    },
}
# What PyTorch's layer norms were called before 2019; transformers still reads it.
OLD_LEAVES = {Kind.NORM_SCALE: "gamma", Kind.NORM_SHIFT: "beta"}


def spell(parameter: Parameter, spelling: Spelling, prefixed: bool = False) -> str:
    """Return the name of ``parameter`` in a spelling.

    Args:
        parameter: The parameter.
        spelling: ``canonical`` (PyTorch state dict), ``flax`` (tree path, ``/`` between),
            ``keras`` (attribute path, ``/`` between, always prefixed) or ``keras_h5``
            (``tf_model.h5``, always prefixed).
        prefixed: Use the name that it has in a model with a head.
    """
    if spelling == "keras_h5":
        return parameter.h5_name
    name = parameter.full_name if prefixed or spelling == "keras" else parameter.name
    if spelling == "canonical":
        return name
    path, _, leaf = name.rpartition(".")
    return f"{path.replace('.', '/')}/{LEAVES[spelling].get(parameter.kind, leaf)}".lstrip("/")


def is_transposed(parameter: Parameter, spelling: Spelling) -> bool:
    """Whether the layout of ``spelling`` is the canonical one transposed."""
    if spelling == "keras_h5":
        return parameter.h5_transposed
    return parameter.kind is Kind.LINEAR and spelling != "canonical"


def layout_shape(parameter: Parameter, spelling: Spelling) -> tuple[int, ...]:
    """Return the shape that ``parameter`` has in the layout of ``spelling``."""
    return parameter.shape[::-1] if is_transposed(parameter, spelling) else parameter.shape


def relayout(
    array: np.ndarray, parameter: Parameter, source: Spelling, target: Spelling
) -> np.ndarray:
    """Return ``array`` in the layout of ``target``; a view where it can be one."""
    if is_transposed(parameter, source) != is_transposed(parameter, target):
        return array.T
    return array
