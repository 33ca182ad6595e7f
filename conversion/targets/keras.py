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
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import layout_shape
from xlmfam.conversion.targets import Work
from xlmfam.conversion.targets.keras_model import KerasReader, build

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
    model = build(work, _Zeros(work.reader), "float32")
    with _weights_read_when_saved(model, KerasReader(work).read):
        try:
            model.save_weights(work.folder / WEIGHTS_NAME)
        except (RuntimeError, TypeError) as error:  # what h5py says of a full disk, among others
            raise CheckpointError(f"{WEIGHTS_NAME} could not be written: {error}") from error
    if (work.folder / WEIGHTS_NAME).stat().st_size <= MOST_BYTES_OF_MODEL:
        _write_model(model, work.folder)


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


@contextmanager
def _weights_read_when_saved(model: Any, read: Callable[[str], np.ndarray]):
    """Let every layer hand over values that are read when Keras asks for them."""
    names = {
        id(model._variable(parameter)): parameter.name
        for parameter in model.expected_parameters().values()
        if parameter.tied_to is None
    }
    layers = list(model._flatten_layers(include_self=True, recursive=True))

    def hand_over(layer: Any) -> Callable[[Any], None]:
        def save_own_variables(store: Any) -> None:
            own: dict[str, Any] = {}
            type(layer).save_own_variables(layer, own)  # Keras's own, which numbers them
            for number, variable in own.items():
                store[number] = read(names[id(variable)])

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
