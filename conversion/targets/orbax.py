"""An Orbax checkpoint of the tree that Flax models have as ``params``."""

from __future__ import annotations

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.parameters import layout_shape, relayout, spell
from xlmfam.conversion.formats.orbax import write_folder
from xlmfam.conversion.targets import Work

# The folder of the arrays, beside the config; what ``StandardCheckpointer().restore`` gets.
FOLDER = "params"


def write(work: Work) -> None:
    """Write the parameters into ``params``, as Orbax's ``StandardCheckpointer`` does.

    Raises:
        MissingPackageError: TensorStore is not installed.
    """
    reader = work.reader
    stored = {spell(reader.parameters[name], "flax"): name for name in reader.plan.sources}
    in_file = reader.source.specs()

    def spec(name: str) -> TensorSpec:
        dtype = reader.dtype or in_file[reader.plan.sources[name]].dtype
        return TensorSpec(layout_shape(reader.parameters[name], "flax"), dtype)

    def read(path: str) -> np.ndarray:
        name = stored[path]
        return relayout(reader.read(name), reader.parameters[name], "canonical", "flax")

    specs = {path: spec(name) for path, name in stored.items()}
    write_folder(work.folder / FOLDER, specs, read, work.progress)
