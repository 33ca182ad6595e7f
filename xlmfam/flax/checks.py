"""Checks of calls, of values where looking is cheap; and the rows of several choices.

Shapes: B batch, S sequence, C choices, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xlmfam.common.checks import check_shape
from xlmfam.common.configs import PretrainedConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import resolve_langs
from xlmfam.flax.base import as_arrays, is_concrete
from xlmfam.flax.losses import IGNORED, problem_type


def check_range(name: str, values: Any, least: int, most: int) -> None:
    """Raise ``XlmfamError`` unless all values lie in [least, most], where looking is cheap."""
    if not values.size or not is_concrete(values):
        return
    low, high = int(np.min(np.asarray(values))), int(np.max(np.asarray(values)))
    if low < least or high > most:
        wrong = low if low < least else high
        raise XlmfamError(f"{name} holds {wrong}, outside [{least}, {most}]")


def column(name: str, values: Any, batch: int) -> Any:
    """Return (B,) of (B,) or (B, 1)."""
    values = as_arrays(values=values)["values"]
    check_shape(name, values, (batch,), (batch, 1))
    return values.reshape(batch)


def inside(name: str, values: Any, batch: int, length: int) -> Any:
    """Return (B,) positions, checked where looking is cheap."""
    values = column(name, values, batch)
    check_range(name, values, 0, length - 1)
    return values


def room_for(targets: Any, room: bool | int) -> int | None:
    """Return how many positions to compute the logits of; ``None`` for all.

    Args:
        targets: (B, S) or ``None``.
        room: ``labelled_logits_only`` of the call.

    Raises:
        XlmfamError: Without labels, for more labels than that, and where they cannot be counted.
    """
    if room is False or room is None:
        return None
    if targets is None:
        raise XlmfamError("labelled_logits_only needs labels")
    count = int(np.sum(np.asarray(targets) != IGNORED)) if is_concrete(targets) else None
    if room is True:
        if count is None:
            raise XlmfamError(
                "labelled_logits_only=True needs to count the labels, which are not there "
                "inside jax.jit: give a number, labelled_logits_only=N, for up to N labels"
            )
        return count
    if count is not None and count > room:
        raise XlmfamError(f"labelled_logits_only={room}, and there are {count} labels")
    return int(room)


def check_classes(config: PretrainedConfig, labels: Any, batch: int, width: int) -> Any:
    """Return the labels of B texts, checked for the kind of problem that they or the config say.

    Args:
        config: The config.
        labels: What came.
        batch: B.
        width: Of the logits.

    Raises:
        XlmfamError: When they do not fit.
    """
    labels = as_arrays(labels=labels)["labels"]
    if labels is None:
        return None
    kind = problem_type(config, labels)
    if kind == "single_label_classification":
        labels = column("labels", labels, batch)
        check_labels(labels, width)
    elif kind == "regression":
        check_shape("labels", labels, (batch, width), *([(batch,)] if width == 1 else []))
    else:
        check_shape("labels", labels, (batch, width))
    return labels


def check_labels(labels: Any, count: int) -> None:
    """Raise ``XlmfamError`` for classes that are not there, where looking is cheap."""
    if labels is not None and is_concrete(labels):
        values = np.asarray(labels)
        check_range("labels", values[values != IGNORED], 0, count - 1)


def choice_langs(config: PretrainedConfig, langs: Any, batch: int, choices: int) -> Any:
    """Return the languages of (B, C, S) texts for B * C rows.

    Args:
        config: The config.
        langs: A name or id, one per sample, one per choice (B, C), or (B, C, S) ids.
        batch: B.
        choices: C.
    """
    langs = resolve_langs(config, langs)
    if langs is None:
        return None
    if len(langs.shape) == 3:
        return flat(langs)
    check_shape("langs", langs, (batch, choices), (batch, 1), (1, 1))
    rows = np.arange(batch * choices)
    # One language may stand for a whole row or for everything.
    return langs[rows // choices % langs.shape[0], rows % choices % langs.shape[1]]


def choices_of(ids: Any, vectors: Any) -> tuple[int, int]:
    """Return B and C."""
    given, dimensions = (ids, 3) if vectors is None else (vectors, 4)
    if given is None or len(given.shape) != dimensions:
        shape = None if given is None else tuple(given.shape)
        wanted = "(batch, choices, sequence)" if dimensions == 3 else "with a width behind it"
        raise XlmfamError(f"the inputs must be {wanted}, got {shape}")
    return given.shape[0], given.shape[1]


def flat(values: Any) -> Any:
    """Return (B * C, ...) of (B, C, ...)."""
    values = as_arrays(values=values)["values"]
    return None if values is None else values.reshape(-1, *values.shape[2:])
