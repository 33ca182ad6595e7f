"""Keras files: ``model.weights.h5``, and ``model.keras`` where it is not too large."""

from __future__ import annotations

import importlib
import json
import mmap
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.models import ParameterReader
from xlmfam.common.errors import CheckpointError, MissingPackageError
from xlmfam.common.parameters import Parameter, layout_shape, relayout
from xlmfam.conversion.targets import Work

WEIGHTS_NAME = "model.weights.h5"
MODEL_NAME = "model.keras"
# The model holds the weights a second time.
MOST_BYTES_OF_MODEL = 1 << 30


def write(work: Work) -> None:
    """Write what ``load_weights`` and ``keras.saving.load_model`` read.

    Keras itself writes the files, of a model whose weights take no memory; each layer fetches its
    own when its turn comes.

    Raises:
        MissingPackageError: TensorFlow is not installed.
        CheckpointError: Keras cannot write the file.
    """
    model = empty_model(work)
    read = _reader(work)
    with _weights_read_when_saved(model, read):
        try:
            model.save_weights(work.folder / WEIGHTS_NAME)
        except (RuntimeError, TypeError) as error:  # what h5py says of a full disk, among others
            raise CheckpointError(f"{WEIGHTS_NAME} could not be written: {error}") from error
    if (work.folder / WEIGHTS_NAME).stat().st_size <= MOST_BYTES_OF_MODEL:
        _write_model(model, work.folder)


def tensorflow_class(name: str) -> Any:
    """Return a TensorFlow class of ours by its name.

    Raises:
        MissingPackageError: TensorFlow is not installed.
        CheckpointError: There is no such class.
    """
    try:
        importlib.import_module("tensorflow")
        module = importlib.import_module("xlmfam.tf")
    except ImportError as error:
        install = 'pip install "xlmfam[tf]"'
        raise MissingPackageError("tensorflow", "writing for Keras", install) from error
    if not hasattr(module, name):
        raise CheckpointError(f"{name} is no class of xlmfam.tf, and cannot be written for Keras")
    return getattr(module, name)


def empty_model(work: Work) -> Any:
    """Return a model of the class whose weights are zeros that no memory is used for."""
    name, _, _ = work.head.partition("(")
    cls = tensorflow_class(name)
    base = importlib.import_module("xlmfam.tf.base")
    arguments = class_arguments(cls, work.head)
    with base.values_from(_Zeros(work.reader)):
        return cls(work.config, dtype="float32", **arguments)


def class_arguments(cls: Any, head: str) -> dict[str, Any]:
    """Return the arguments that make of a class the one that the table calls ``head``."""
    if cls.table_class_with() == head:
        return {}
    for argument in cls.init_arguments:
        if cls.table_class_with(**{argument: False}) == head:
            return {argument: False}
    return {}


class _Zeros:
    """Stands for a reader; gives zeros that lie in pages nobody has touched."""

    def __init__(self, reader: ParameterReader):
        self.plan = reader.plan
        self._parameters = reader.parameters

    def read(self, name: str) -> np.ndarray:
        """Return zeros of the shape of a parameter, in Keras layout."""
        shape = layout_shape(self._parameters[name], "keras")
        size = self._parameters[name].size
        pages = mmap.mmap(-1, max(1, 4 * size))
        return np.frombuffer(pages, np.float32, size).reshape(shape)


def _reader(work: Work) -> Callable[[Parameter], np.ndarray]:
    def read(parameter: Parameter) -> np.ndarray:
        array = work.reader.read(parameter.name)
        if work.progress is not None:
            work.progress(array.nbytes)
        return np.ascontiguousarray(relayout(array, parameter, "canonical", "keras"))

    return read


@contextmanager
def _weights_read_when_saved(model: Any, read: Callable[[Parameter], np.ndarray]):
    """Let every layer hand over values that are read when Keras asks for them."""
    parameters = {
        id(model._variable(parameter)): parameter
        for parameter in model.expected_parameters().values()
        if parameter.tied_to is None
    }
    layers = list(model._flatten_layers(include_self=True, recursive=True))

    def hand_over(layer: Any) -> Callable[[Any], None]:
        def save_own_variables(store: Any) -> None:
            own: dict[str, Any] = {}
            type(layer).save_own_variables(layer, own)  # Keras's own, which numbers them
            for number, variable in own.items():
                store[number] = read(parameters[id(variable)])

        return save_own_variables

    for layer in layers:
        object.__setattr__(layer, "save_own_variables", hand_over(layer))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "save_own_variables")


def _write_model(model: Any, folder: Path) -> None:
    """Write a ``.keras`` file of the weights that were just written."""
    keras = importlib.import_module("keras")
    about = {"keras_version": keras.__version__, "date_saved": time.strftime("%Y-%m-%d@%H:%M:%S")}
    with zipfile.ZipFile(folder / MODEL_NAME, "w") as archive:
        archive.writestr("metadata.json", json.dumps(about))
        archive.writestr("config.json", json.dumps(keras.saving.serialize_keras_object(model)))
        archive.write(folder / WEIGHTS_NAME, WEIGHTS_NAME)
