"""Gradients of every parameter and one optimiser step, from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_tools import padded, right, shifted_loss
from xglm_calls import Inputs
from xglm_checkpoints import load

SGD = {"lr": 0.1}
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}


def _inputs(checkpoint: str, seed: int) -> dict[str, torch.Tensor]:
    make = Inputs(checkpoint, seed)
    mask = right([8, 5, 7], 8)
    text = padded(make.ids(3, 8), mask)
    labels = text.masked_fill(mask == 0, -100)
    labels[0, 3:5] = -100
    inputs = {"input_ids": text, "attention_mask": mask, "labels": labels}
    if checkpoint == "cross":
        inputs["encoder_hidden_states"] = make.vectors(3, 5)
        inputs["encoder_attention_mask"] = right([5, 2, 4], 5)
    return inputs


def _loss(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
    given = {k: v for k, v in inputs.items() if k != "labels"}
    return shifted_loss(model(**given, use_cache=False).logits, inputs["labels"])


def training_cases(root: Path) -> list[dict]:
    cases = []
    for number, checkpoint in enumerate(("plain", "cross")):
        inputs = _inputs(checkpoint, 200 + number)
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
            "class": "XGLMForCausalLM",
            "arrays": f"{checkpoint}/training.npz",
            "inputs": {k: f"inputs.{k}" for k in inputs},
            "flags": {"use_cache": False},
            "loss": "loss",
            "gradients": {k: f"gradient.{k}" for k in gradients},
            "largest_gradient": largest,
            "zero_gradients": [k for k, g in gradients.items() if np.abs(g).max() < 1e-6 * largest],
        }
        if checkpoint == "plain":
            for name, cls, options in (
                ("sgd", torch.optim.SGD, SGD),
                ("adamw", torch.optim.AdamW, ADAMW),
            ):
                stepped = load(root, checkpoint)
                before = {k: p.detach().clone() for k, p in stepped.named_parameters()}
                optimiser = cls(stepped.parameters(), **options)
                _loss(stepped, inputs).backward()
                optimiser.step()
                case[name] = {"options": options, "loss_after": f"{name}_loss"}
                if name == "adamw":
                    arrays.update(
                        {f"{name}.{k}": p.detach().numpy() for k, p in stepped.named_parameters()}
                    )
                    case[name]["parameters"] = {k: f"{name}.{k}" for k in gradients}
                else:  # not stored: the checkpoint minus lr times the stored gradient
                    for k, p in stepped.named_parameters():
                        torch.testing.assert_close(
                            p.detach(), before[k] - SGD["lr"] * torch.from_numpy(gradients[k])
                        )
                with torch.no_grad():
                    arrays[f"{name}_loss"] = _loss(stepped, inputs).numpy()
        np.savez_compressed(root / case["arrays"], **arrays)
        cases.append(case)
    return cases
