"""A checkpoint that kimiyoung's TensorFlow code reads.

The settings that it does not hold go into ``settings.json``, by the names of the original's flags.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import DTYPES, TensorSpec
from xlmfam.common.errors import CheckpointError
from xlmfam.common.logging import get_logger
from xlmfam.common.parameters import Parameter, layout_shape, relayout
from xlmfam.conversion.originals.transfo_xl_bundle_writer import write_bundle
from xlmfam.conversion.originals.transfo_xl_flags import SETTINGS_NAME
from xlmfam.conversion.originals.transfo_xl_tf1_names import place_of
from xlmfam.conversion.targets import Work

PREFIX = "model.ckpt-0"
# The original's graphs have no other.
_DTYPE = DTYPES["float32"]
_EPSILON = 1e-12
logger = get_logger(__name__)

Variables = dict[str, tuple[TensorSpec, Callable[[], np.ndarray]]]


def write_checkpoint(work: Work) -> None:
    """Write ``model.ckpt-0.*``, ``checkpoint`` and ``settings.json``.

    Args:
        work: A language model.

    Raises:
        CheckpointError: The original has no such model.
    """
    _require_known(work.config)
    variables = _variables(work)
    write_bundle(work.folder / PREFIX, variables, work.progress)
    text = f'model_checkpoint_path: "{PREFIX}"\nall_model_checkpoint_paths: "{PREFIX}"\n'
    (work.folder / "checkpoint").write_text(text, encoding="utf-8")
    settings = json.dumps(_settings(work.config), indent=2) + "\n"
    (work.folder / SETTINGS_NAME).write_text(settings, encoding="utf-8")


def _require_known(config: Any) -> None:
    """Raise ``CheckpointError`` unless the original's TensorFlow code has such a model."""
    code = "the original's TensorFlow code"
    if config.pre_lnorm:
        raise CheckpointError(f"pre_lnorm is True: {code} has norms behind the blocks only")
    if not config.tie_word_embeddings:
        raise CheckpointError(
            f"tie_word_embeddings is False: {code} always shares embedding and softmax"
        )
    projects = config.div_val > 1 or config.d_embed != config.d_model
    if not config.cutoffs and projects and not config.ties_projection(0):
        raise CheckpointError(
            f"tie_projs is {config.tie_projs}: without clusters, {code} shares the projection"
        )
    if config.layer_norm_epsilon != _EPSILON:
        logger.warning(
            "layer_norm_epsilon is %s; %s adds %s", config.layer_norm_epsilon, code, _EPSILON
        )


def _settings(config: Any) -> dict[str, Any]:
    """Return the original's flags that no variable tells."""
    # There, the tokens that one sees are those of the memory and itself.
    same_length = config.same_length and config.mem_len > 0
    return {
        "mem_len": config.mem_len - same_length,
        "clamp_len": config.clamp_len,
        "same_length": same_length,
        "dropout": config.dropout,
        "dropatt": config.dropatt,
    }


def _variables(work: Work) -> Variables:
    """Return the variables that the parameters make."""
    rows: dict[str, list[Parameter]] = {}
    found: Variables = {}
    for parameter in work.reader.parameters.values():
        if parameter.tied_to is not None:
            continue
        place = place_of(parameter, work.config)
        if place.row is not None:
            rows.setdefault(place.names[0], []).append(parameter)
        elif len(place.names) == 1:
            spec = TensorSpec(layout_shape(parameter, "keras_h5"), _DTYPE)
            found[place.names[0]] = (spec, _whole(work, parameter))
        else:
            bounds = work.config.cluster_bounds
            for name, (first, end) in zip(place.names, bounds, strict=True):
                found[name] = (
                    TensorSpec((end - first,), _DTYPE),
                    _part(work, parameter, first, end),
                )
    for name, parameters in rows.items():
        spec = TensorSpec((len(parameters), *parameters[0].shape), _DTYPE)
        found[name] = (spec, _stacked(work, parameters))
    return found


def _whole(work: Work, parameter: Parameter) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = work.reader.read(parameter.name).astype(_DTYPE, copy=False)
        return relayout(array, parameter, "canonical", "keras_h5")

    return read


def _part(work: Work, parameter: Parameter, first: int, end: int) -> Callable[[], np.ndarray]:
    read = _whole(work, parameter)
    return lambda: read()[first:end]


def _stacked(work: Work, parameters: list[Parameter]) -> Callable[[], np.ndarray]:
    return lambda: np.stack([_whole(work, parameter)() for parameter in parameters])
