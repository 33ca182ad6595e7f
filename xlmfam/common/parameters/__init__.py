"""The parameter tables: the only place where weight names and transposes stand."""

from __future__ import annotations

import importlib

from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters.matching import OTHER_LANGUAGE, LoadPlan, plan_loading
from xlmfam.common.parameters.sharding import linear_styles, partition
from xlmfam.common.parameters.spelling import (
    Spelling,
    is_transposed,
    layout_shape,
    relayout,
    spell,
)
from xlmfam.common.parameters.table import Kind, Parameter, Row, Table, parameter_count

TABLES = {
    "xglm": ("xlmfam.common.parameters.xglm", "XGLM"),
    "xlm": ("xlmfam.common.parameters.xlm", "XLM"),
    "transfo-xl": ("xlmfam.common.parameters.transfo_xl", "TRANSFO_XL"),
    "xmod": ("xlmfam.common.parameters.xmod", "XMOD"),
}

__all__ = [
    "OTHER_LANGUAGE",
    "Kind",
    "LoadPlan",
    "Parameter",
    "Row",
    "Spelling",
    "Table",
    "is_transposed",
    "layout_shape",
    "linear_styles",
    "parameter_count",
    "partition",
    "plan_loading",
    "relayout",
    "spell",
    "table_of",
]


def table_of(family: str) -> Table:
    """Return the parameter table of a ``model_type``.

    Raises:
        XlmfamError: When the family is not one of ours.
    """
    if family not in TABLES:
        raise XlmfamError(f"family {family!r} is not one of {', '.join(sorted(TABLES))}")
    module, name = TABLES[family]
    return getattr(importlib.import_module(module), name)
