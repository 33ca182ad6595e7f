"""Losses of the heads, and what belongs to them: targets, choices, labelled positions.

Shapes: B batch, S sequence, C choices, D width, V classes or vocabulary, N labels that count.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xlmfam.common.checks import check_shape
from xlmfam.common.configs import PretrainedConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import resolve_langs
from xlmfam.pt.checks import IGNORED, check_labels, check_range, is_cheap


def labelled(hidden: Tensor, targets: Tensor, room: bool | int) -> tuple[Tensor, Tensor]:
    """Return the states and targets of the positions that have a label.

    Args:
        hidden: (B, T, D).
        targets: (B, T).
        room: N, or ``True`` for as many as there are.

    Returns:
        (N, D) and (N,), the latter -100 beyond the labels.
    """
    counts = targets.flatten() != IGNORED
    if room is True:
        index = counts.nonzero()[:, 0]
        return hidden.flatten(0, 1)[index], targets.flatten()[index]
    if is_cheap(counts) and int(counts.sum()) > room:
        raise XlmfamError(f"labelled_logits_only={room}, and there are {int(counts.sum())} labels")
    index = torch.nonzero_static(counts, size=room, fill_value=0)[:, 0]
    there = torch.arange(room, device=counts.device) < counts.sum()
    states = hidden.flatten(0, 1)[index]
    too_many = torch.where(counts.sum() > room, float("nan"), 0.0).to(states.dtype)
    return states + too_many, targets.flatten()[index].masked_fill(~there, IGNORED)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of logits (..., V) for targets (...); -100 does not count.

    Log-probabilities will do as logits: their softmax is what they are the logarithm of.
    """
    return F.cross_entropy(logits.float().flatten(0, -2), targets.to(logits.device).flatten())


def classification_loss(config: PretrainedConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of (B, num_labels) logits, of the kind that the config or the labels say.

    Raises:
        XlmfamError: When the labels do not fit.
    """
    kind = config.problem_type
    if kind is None:
        several = labels.dtype.is_floating_point
        kind = "multi_label_classification" if several else "single_label_classification"
        kind = "regression" if config.num_labels == 1 else kind
    batch, width = logits.shape
    if kind == "single_label_classification":
        labels = column("labels", labels, batch).long()
        check_labels(labels, width)
        return mean_loss(logits, labels)
    if kind == "regression":
        check_shape("labels", labels, (batch, width), *([(batch,)] if width == 1 else []))
        return F.mse_loss(logits.float(), labels.float().view(batch, width))
    check_shape("labels", labels, (batch, width))
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


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
    langs = torch.as_tensor(langs)
    if langs.dim() == 3:
        return langs.flatten(0, 1)
    check_shape("langs", langs, (batch, choices), (batch, 1), (1, 1))
    return langs.expand(batch, choices).reshape(-1)


def flat(values: Tensor | None) -> Tensor | None:
    """Return (B * C, ...) of (B, C, ...)."""
    return None if values is None else values.flatten(0, 1)


def column(name: str, values: Tensor, batch: int) -> Tensor:
    """Return (B,) of (B,) or (B, 1)."""
    check_shape(name, values, (batch,), (batch, 1))
    return values.reshape(batch)


def inside(name: str, values: Tensor, batch: int, length: int) -> Tensor:
    """Return (B,) positions, checked where looking is cheap."""
    values = column(name, values, batch)
    check_range(name, values, 0, length - 1)
    return values


def within(positions: Tensor, length: int) -> Tensor:
    """Return (B,) targets: a position outside the text does not count, a negative one is 0."""
    positions = positions.clamp(min=0)
    return positions.masked_fill(positions >= length, IGNORED)
