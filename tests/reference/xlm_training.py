"""Gradients of every parameter and one optimiser step, from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_tools import left, mean_loss, padded, right, shifted_loss
from xlm_calls import PAD, Inputs, lm_output, row_by_row
from xlm_checkpoints import CHECKPOINTS, load

SGD = {"lr": 0.1}
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-5, "weight_decay": 0.01}
_STEPPED = ("plain", "token")


def _inputs(checkpoint: str, seed: int) -> dict[str, torch.Tensor]:
    """Padded inputs of every kind a head takes, so that every parameter gets a gradient."""
    make = Inputs(checkpoint, seed)
    shape = (2, 3, 6) if checkpoint == "choice" else (3, 6)
    mask = (left if checkpoint == "causal" else right)([4, 6, 5], 6).expand(shape)
    text = padded(make.ids(*shape), mask, PAD)
    inputs = {"input_ids": text, "attention_mask": mask.clone(), "langs": make.langs(*shape)}
    if checkpoint in ("plain", "causal", "asm"):
        if checkpoint == "asm":
            text = make.below(0, make.options["vocab_size"], *shape)
        labels = text.masked_fill(mask == 0, -100)
        labels[0, 2] = labels[1, 3] = labels[2, 1] = -100
        inputs["labels"] = labels
    elif checkpoint == "choice":
        inputs["labels"] = torch.tensor([2, 0])
    elif checkpoint == "token":
        inputs["labels"] = make.labels(*shape).masked_fill(mask == 0, -100)
    elif checkpoint == "sequence":
        inputs["labels"] = make.labels(3)
    else:
        inputs["start_positions"] = torch.tensor([0, 2, 3])
        inputs["end_positions"] = torch.tensor([3, 2, 4])
        if checkpoint == "beam_span":
            inputs["cls_index"] = torch.tensor([0, 3, 2])
            inputs["is_impossible"] = torch.tensor([1.0, 0.0, 1.0])
            inputs["p_mask"] = (1 - mask).float()
    return inputs


def _loss(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
    given = {k: v for k, v in inputs.items() if k != "labels"}
    if model.config.causal:
        return shifted_loss(row_by_row(model, given, {}, base=False)["logits"], inputs["labels"])
    if model.config.asm:
        return mean_loss(lm_output(model, given, {})["logits"], inputs["labels"])
    return model(**inputs).loss


def training_cases(root: Path) -> list[dict]:
    cases = []
    heads = ("plain", "causal", "asm", "sequence", "choice", "token", "span", "beam_span")
    for number, checkpoint in enumerate(heads):
        inputs = _inputs(checkpoint, 400 + number)
        model = load(root, checkpoint)
        loss = _loss(model, inputs)
        loss.backward()
        arrays = {f"inputs.{k}": v.numpy() for k, v in inputs.items()}
        arrays["loss"] = loss.detach().numpy()
        gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
        largest = max(float(np.abs(g).max()) for g in gradients.values())
        arrays.update({f"gradient.{k}": v for k, v in gradients.items()})
        case = {
            "name": f"{checkpoint}/training",
            "checkpoint": checkpoint,
            "class": CHECKPOINTS[checkpoint][0],
            "arrays": f"{checkpoint}/training.npz",
            "inputs": {k: f"inputs.{k}" for k in inputs},
            "flags": {},
            "loss": "loss",
            "gradients": {k: f"gradient.{k}" for k in gradients},
            "largest_gradient": largest,
            "zero_gradients": [k for k, g in gradients.items() if np.abs(g).max() < 1e-6 * largest],
        }
        if checkpoint in _STEPPED:
            for name, cls, options in (
                ("sgd", torch.optim.SGD, SGD),
                ("adamw", torch.optim.AdamW, ADAMW),
            ):
                case[name] = _step(root, checkpoint, inputs, arrays, name, cls, options)
        np.savez_compressed(root / case["arrays"], **arrays)
        cases.append(case)
    return cases


def _step(
    root: Path,
    checkpoint: str,
    inputs: dict,
    arrays: dict,
    name: str,
    cls: type[torch.optim.Optimizer],
    options: dict,
) -> dict:
    model = load(root, checkpoint)
    optimiser = cls(model.parameters(), **options)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    _loss(model, inputs).backward()
    optimiser.step()
    result: dict = {"options": options, "loss_after": f"{name}_loss"}
    after = {k: p.detach() for k, p in model.named_parameters()}
    if name == "adamw":
        arrays.update({f"{name}.{k}": p.numpy() for k, p in after.items()})
        result["parameters"] = {k: f"{name}.{k}" for k in after}
    else:  # not stored: the checkpoint minus lr times the stored gradient
        for k, p in after.items():
            slope = torch.from_numpy(arrays[f"gradient.{k}"])
            torch.testing.assert_close(p, before[k] - options["lr"] * slope)
    with torch.no_grad():
        arrays[f"{name}_loss"] = _loss(model, inputs).numpy()
    return result
