"""TensorFlow models for the targets that need one."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from xlmfam.common.errors import CheckpointError, MissingPackageError
from xlmfam.common.parameters import relayout
from xlmfam.conversion.targets import Work


class KerasReader:
    """Gives parameters as Keras has them, from the reader of a `Work`.

    Args:
        work: Whose reader it is.
        dtype: Of what it gives; ``None`` keeps that of the reader.

    Attributes:
        plan: That of the reader.
    """

    def __init__(self, work: Work, dtype: np.dtype | None = None):
        self.plan = work.reader.plan
        self._work, self._dtype = work, dtype

    def read(self, name: str) -> np.ndarray:
        """Return one parameter."""
        reader = self._work.reader
        array = relayout(reader.read(name), reader.parameters[name], "canonical", "keras")
        if self._work.progress is not None:
            self._work.progress(array.nbytes)
        return np.ascontiguousarray(array, self._dtype)


def build(work: Work, values: Any, dtype: str) -> Any:
    """Return the TensorFlow model of a `Work`.

    Args:
        work: What to build.
        values: Has a ``plan``, and a ``read`` that gives the values of a parameter.
        dtype: Name of the model's dtype.

    Raises:
        MissingPackageError: TensorFlow is not installed.
        CheckpointError: The class is none of ``xlmfam.tf``.
    """
    name, _, missing = work.head.partition("(")
    try:
        importlib.import_module("tensorflow")
        module, base = map(importlib.import_module, ("xlmfam.tf", "xlmfam.tf.base"))
    except ImportError as error:
        install = 'pip install "xlmfam[tf]"'
        raise MissingPackageError("tensorflow", "writing for TensorFlow", install) from error
    cls = getattr(module, name, None)
    if cls is None:
        raise CheckpointError(f"{name} is no class of xlmfam.tf, and cannot be written for it")
    without = dict.fromkeys(cls.init_arguments, False) if missing else {}
    with base.values_from(values):
        return cls(work.config, dtype=dtype, **without)
