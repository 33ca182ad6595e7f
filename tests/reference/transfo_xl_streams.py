"""Evaluation of a long text in segments that hand on their memories, from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transfo_xl_checkpoints import CHECKPOINTS, load
from transfo_xl_recorder import Inputs

_LENGTH = 64
# Checkpoint, tokens in a segment, and config values.
_STREAMS: list[tuple[str, str, int, dict]] = [
    ("stream", "plain", 8, {}),
    ("stream_remainder", "plain", 15, {"mem_len": 11}),
    ("stream_long_memory", "plain", 8, {"mem_len": 40, "clamp_len": 20}),
    ("stream_no_memory", "plain", 8, {"mem_len": 0, "same_length": False}),
    ("stream_one_by_one", "plain", 1, {"mem_len": 12, "clamp_len": -1}),
    ("stream_whole", "plain", _LENGTH, {"mem_len": 5, "same_length": False}),
    ("stream", "one_width", 6, {}),
    ("stream", "pre_norm", 16, {"mem_len": 4}),
    ("stream", "untied", 7, {"mem_len": 20, "clamp_len": 10}),
]


def stream_cases(root: Path) -> list[dict]:
    cases = []
    for number, (name, checkpoint, length, overrides) in enumerate(_STREAMS):
        model = load(root, checkpoint, **overrides)
        text = Inputs(checkpoint, 950 + number).ids(2, _LENGTH)
        losses, mems = _losses(model, text, length)
        arrays = {
            "input_ids": text.numpy(),
            "losses": losses.numpy(),
            "mems": torch.stack(mems).numpy() if mems is not None and len(mems) else np.zeros(0),
        }
        path = f"{checkpoint}/{name}.npz"
        np.savez_compressed(root / path, **arrays)
        cases.append(
            {
                "name": f"{checkpoint}/{name}",
                "checkpoint": checkpoint,
                "class": CHECKPOINTS[checkpoint][0],
                **({"overrides": overrides} if overrides else {}),
                "arrays": path,
                "input_ids": "input_ids",
                "segment": length,
                "losses": "losses",
                "mems": "mems",
                "total": losses.double().sum().item(),
            }
        )
    return cases


def _losses(model: torch.nn.Module, text: torch.Tensor, length: int) -> tuple[torch.Tensor, list]:
    """The loss of every token but the first, each under the scores of the position before it."""
    pieces, mems = [], None
    for segment in text.split(length, 1):
        with torch.no_grad():
            output = model(segment, mems=mems)
        mems = output.mems
        pieces.append(output.prediction_scores)
    scores = torch.cat(pieces, 1)
    return -scores[:, :-1].gather(-1, text[:, 1:, None])[..., 0], mems
