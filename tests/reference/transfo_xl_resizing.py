"""Vocabularies made larger and smaller, cluster by cluster.

Expected are the scores of a new model that was built with the changed sizes and has the old rows.
Where the clusters have weights of their own and head and embedding are tied, the reference's own
resizing gives the same; with one weight for all clusters it loses their borders, and untied it
leaves the head as it was.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from transfo_xl_checkpoints import CHECKPOINTS, load
from transfo_xl_recorder import Inputs

# Checkpoint, new size, and the cluster (`layer`) that takes the difference.
_CASES: list[tuple[str, int, int | None]] = [
    *(("plain", 60, layer) for layer in (None, -1, 0, 1, 2)),
    *(("plain", 49, layer) for layer in (None, 0, 1, 2)),
    ("plain", 53, None),
    ("pre_norm", 46, None),
    ("pre_norm", 46, 0),
    ("one_width", 51, None),
    ("one_width", 43, -1),
    ("narrow", 45, None),
    ("untied", 40, None),
    ("untied", 33, 1),
]


def _config(before: transformers.PretrainedConfig, size: int, cluster: int) -> dict:
    """The changed sizes: the borders after the cluster move."""
    by = size - before.vocab_size
    cutoffs = [cut + by if place >= cluster else cut for place, cut in enumerate(before.cutoffs)]
    return {"vocab_size": size, "cutoffs": cutoffs}


def _resized(
    model: torch.nn.Module, changes: dict, seed: int
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A new model with the old rows and seeded new ones; every parameter whose shape is another."""
    config = transformers.TransfoXLConfig(**{**model.config.to_dict(), **changes})
    new = type(model)(config).eval()
    old, generator = dict(model.named_parameters()), torch.Generator().manual_seed(seed)
    changed = {}
    with torch.no_grad():
        for name, parameter in sorted(new.named_parameters()):
            kept = min(len(parameter), len(old[name]))
            parameter[:kept] = old[name][:kept]
            if parameter.shape != old[name].shape:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter[kept:] = noise[kept:]
                changed[name] = parameter.detach().clone()
    return new, changed


def _own(model: torch.nn.Module, arguments: dict, changed: dict, ids: torch.Tensor) -> dict:
    """What the reference's own resizing comes to, given the same new rows."""
    try:
        model.resize_token_embeddings(**arguments)
    except Exception as error:
        return {"error": type(error).__name__}
    config = {"vocab_size": model.config.vocab_size, "cutoffs": list(model.config.cutoffs)}
    own = dict(model.named_parameters())
    try:
        with torch.no_grad():
            for name, value in changed.items():
                own[name].copy_(value)
            return {"config": config, "scores": model(ids).prediction_scores}
    except Exception as error:
        return {"config": config, "error": type(error).__name__}


def resizing_cases(root: Path) -> list[dict]:
    cases = []
    for number, (checkpoint, size, layer) in enumerate(_CASES):
        model = load(root, checkpoint)
        clusters = len(model.config.cutoffs)
        changes = _config(model.config, size, clusters if layer in (None, -1) else layer)
        new, changed = _resized(model, changes, 980 + number)
        ids = Inputs(checkpoint, 990 + number).below(0, size, 2, 6)
        ids[0, 0], ids[1, 5] = size - 1, changes["cutoffs"][0]
        with torch.no_grad():
            scores = new(ids).prediction_scores
        arguments = {"new_num_tokens": size, **({} if layer is None else {"layer": layer})}
        own = _own(model, arguments, changed, ids)
        name = f"resized_{size}_{'default' if layer is None else layer}".replace("-1", "last")
        entry: dict = {
            "name": f"{checkpoint}/{name}",
            "checkpoint": checkpoint,
            "class": CHECKPOINTS[checkpoint][0],
            "arrays": f"{checkpoint}/{name}.npz",
            "arguments": arguments,
            "config": changes,
            "shapes": {k: list(v.shape) for k, v in new.state_dict().items()},
            "parameters": {k: f"parameter.{k}" for k in changed},
            "input_ids": "input_ids",
            "expected": {"prediction_scores": "prediction_scores"},
        }
        found = own.pop("scores", None)
        if found is not None and own["config"] == changes:
            torch.testing.assert_close(found, scores)
        else:
            entry["reference"] = own
        arrays = {"input_ids": ids.numpy(), "prediction_scores": scores.numpy()}
        arrays |= {f"parameter.{k}": v.numpy() for k, v in changed.items()}
        np.savez_compressed(root / entry["arrays"], **arrays)
        cases.append(entry)
    return cases
