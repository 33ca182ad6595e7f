"""Lists to the arrays of NumPy, PyTorch, TensorFlow and JAX, and back."""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from xlmfam.common.errors import MissingPackageError, XlmfamError


class TensorType(enum.StrEnum):
    """What ``return_tensors`` may be."""

    PYTORCH = "pt"
    TENSORFLOW = "tf"
    NUMPY = "np"
    JAX = "jax"

    @classmethod
    def of(cls, value: str | TensorType) -> TensorType:
        """Return the member that ``value`` names.

        Raises:
            XlmfamError: ``value`` is not one of the four.
        """
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(repr(member.value) for member in cls)
            raise XlmfamError(
                f"return_tensors is {value!r}; it may be one of {allowed}, or None for lists"
            ) from None


def _framework(module: str, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingPackageError(
            package, f"return_tensors for {package}", f"pip install 'xlmfam[{extra}]'"
        ) from None


def tensor_maker(kind: str | TensorType) -> Callable[[Any], Any]:
    """Return the function that turns nested lists into the tensors of ``kind``.

    Integers become 64-bit in NumPy and PyTorch, 32-bit in TensorFlow and (by default) in JAX.

    Raises:
        MissingPackageError: the framework is not installed.
    """
    kind = TensorType.of(kind)
    if kind is TensorType.NUMPY:
        return _to_numpy
    if kind is TensorType.PYTORCH:
        torch = _framework("torch", "torch", "pt")

        def to_torch(value: Any) -> Any:
            return value if torch.is_tensor(value) else torch.from_numpy(_to_numpy(value))

        return to_torch
    if kind is TensorType.TENSORFLOW:
        tf = _framework("tensorflow", "tensorflow", "tf")

        def to_tensorflow(value: Any) -> Any:
            if tf.is_tensor(value):
                return value
            array = _to_numpy(value)
            return tf.constant(array.astype(np.int32) if array.dtype == np.int64 else array)

        return to_tensorflow
    jnp = _framework("jax.numpy", "jax", "flax")

    def to_jax(value: Any) -> Any:
        array = _to_numpy(value)
        # JAX would narrow 64-bit integers anyway, with a warning for each call.
        return jnp.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)

    return to_jax


def _to_numpy(value: Any) -> np.ndarray:
    array = np.asarray(as_lists(value))
    if array.dtype == object:
        raise ValueError("rows of unequal length")
    # Empty lists would become float arrays, and ids are integers.
    return array.astype(np.int64) if array.size == 0 or array.dtype.kind in "iub" else array


def as_lists(value: Any) -> Any:
    """Return the tensors in ``value`` as plain lists and numbers; lists are looked into."""
    if isinstance(value, (str, bytes, int, float)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        if not value or isinstance(value[0], (int, float, str)):
            return list(value) if isinstance(value, tuple) else value
        return [as_lists(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "numpy"):
        return value.numpy().tolist()
    return value


def tensor_type_of(value: Any) -> TensorType | None:
    """Say which framework ``value`` belongs to; ``None`` for lists and numbers."""
    if isinstance(value, (np.ndarray, np.generic)):
        return TensorType.NUMPY
    module = type(value).__module__.split(".")[0]
    known = {
        "torch": TensorType.PYTORCH,
        "tensorflow": TensorType.TENSORFLOW,
        "jax": TensorType.JAX,
        "jaxlib": TensorType.JAX,
    }
    return known.get(module)
