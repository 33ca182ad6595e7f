"""Where each parameter lives on a device mesh, from its logical axes."""

from __future__ import annotations

from collections.abc import Mapping

from xlmfam.common.parameters.spelling import Spelling, is_transposed
from xlmfam.common.parameters.table import Kind, Parameter

# Tensor parallelism as in Megatron-LM (Shoeybi et al. 2019): heads and feed-forward columns are
# split, the projections back are split along their input.
DEFAULT_RULES: dict[str, str | None] = {"vocab": "model", "heads": "model", "mlp": "model"}


def partition(
    parameter: Parameter, spelling: Spelling, rules: Mapping[str, str | None] = DEFAULT_RULES
) -> tuple[str | None, ...]:
    """Return the mesh axis of every dimension in the layout of ``spelling``.

    Args:
        parameter: The parameter.
        spelling: Whose layout to answer for.
        rules: Mesh axis of each logical axis; what is not named is replicated.
    """
    axes = tuple(rules.get(axis) for axis in parameter.axes)
    return axes[::-1] if is_transposed(parameter, spelling) else axes


def linear_styles(
    parameters: Mapping[str, Parameter], rules: Mapping[str, str | None] = DEFAULT_RULES
) -> dict[str, str]:
    """Return ``{module path: "colwise" | "rowwise"}`` for every linear layer that is split.

    A layer split along its outputs is ``colwise``, along its inputs ``rowwise``.
    """
    styles = {}
    for name, parameter in parameters.items():
        if parameter.kind is not Kind.LINEAR:
            continue
        out_axis, in_axis = partition(parameter, "canonical", rules)
        if out_axis or in_axis:
            styles[name.rpartition(".")[0]] = "colwise" if out_axis else "rowwise"
    return styles
