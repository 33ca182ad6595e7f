"""An Orbax checkpoint of the tree that Flax models have as ``params``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.parameters import relayout, spell
from xlmfam.common.parameters.spelling import is_transposed
from xlmfam.conversion.formats.orbax import write_folder
from xlmfam.conversion.streaming import Reading
from xlmfam.conversion.targets import Work

# The folder of the arrays, beside the config; what ``StandardCheckpointer().restore`` gets.
FOLDER = "params"
# What is larger is read in blocks, and once more for its checksum.
MOST_BYTES_AT_ONCE = 1 << 27


def write(work: Work) -> None:
    """Write the parameters into ``params``, as Orbax's ``StandardCheckpointer`` does.

    Raises:
        MissingPackageError: TensorStore is not installed.
    """
    reader = work.reader
    stored = {spell(reader.parameters[name], "flax"): name for name in reader.plan.sources}

    def reading(path: str) -> tuple[Reading, bool]:
        name = stored[path]
        parameter = reader.parameters[name]
        found = Reading(reader.source, reader.plan.sources[name], parameter, reader.dtype)
        return found, is_transposed(parameter, "flax") != found.is_turned

    def spec(path: str) -> TensorSpec:
        found, turned = reading(path)
        return found.spec(turned)

    def blocks(path: str) -> Iterable[np.ndarray]:
        if spec(path).nbytes > MOST_BYTES_AT_ONCE:
            found, turned = reading(path)
            return found.blocks(turned)
        name = stored[path]
        return [relayout(reader.read(name), reader.parameters[name], "canonical", "flax")]

    specs = {path: spec(path) for path in stored}
    write_folder(work.folder / FOLDER, specs, blocks, work.progress)
