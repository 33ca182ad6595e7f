"""Gradients of every parameter and one optimiser step, from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_tools import left, padded, right
from xmod_calls import norm_name, norm_options
from xmod_checkpoints import CHECKPOINTS, NORMS, load
from xmod_recorder import NO_CACHE, PAD, Inputs, told

SGD = {"lr": 0.1}
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-5, "weight_decay": 0.01}
_DECODERS = ("causal", "cross", "relative_key_query")


def _cases() -> list[dict]:
    """Name, folder, and what is not as usual: overrides, languages, optimiser steps."""
    heads = ("causal", "cross", "relative_key", "relative_key_query")
    heads += ("sequence", "choice", "span")
    return [
        {"name": "training", "checkpoint": "plain", "steps": True},
        {"name": "training_default_language", "checkpoint": "plain", "langs": None},
        *({"name": "training", "checkpoint": head} for head in heads),
        {"name": "training", "checkpoint": "token", "langs": [1, 0, 2], "steps": True},
        {"name": "training_per_token", "checkpoint": "token", "langs": "tokens"},
        *(
            {
                "name": f"training_{norm_name(options)}",
                "checkpoint": folder,
                "overrides": options,
            }
            for folder in NORMS
            for options in norm_options()
            if _matters(folder, options)
        ),
    ]


def _matters(folder: str, options: dict) -> bool:
    """Some options are without effect beside others: the calls show that, no gradients needed."""
    reuse, before = options["adapter_reuse_layer_norm"], options["ln_before_adapter"]
    return reuse or not (before or folder.endswith("own"))


def _inputs(case: dict, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Padded inputs of every kind a head takes, and the languages where each token has its own."""
    checkpoint = case["checkpoint"]
    make = Inputs(checkpoint, seed)
    shape = (2, 3, 6) if checkpoint == "choice" else (3, 6)
    decoder = checkpoint in _DECODERS
    mask = (left if decoder else right)([4, 6, 5], 6).expand(shape)
    text = padded(make.ids(*shape), mask, PAD)
    inputs = {
        "input_ids": text,
        "attention_mask": mask.clone(),
        "token_type_ids": make.types(*shape),
    }
    langs = case.get("langs", [2, 0, 2])
    told_langs = None
    if checkpoint == "choice":  # one language for each choice
        inputs["lang_ids"] = torch.tensor([[2, 0, 2], [0, 0, 2]])
        told_langs = inputs["lang_ids"].reshape(6, 1)
    elif langs == "tokens":
        inputs["lang_ids"] = told_langs = make.below(0, 2, 3, 6) * 2
    elif langs is not None:
        inputs["lang_ids"] = torch.tensor(langs)
    if checkpoint in ("cross", "relative_key_query"):
        inputs["encoder_hidden_states"] = make.vectors(3, 5)
        inputs["encoder_attention_mask"] = right([5, 2, 4], 5)
    if checkpoint == "choice":
        inputs["labels"] = torch.tensor([2, 0])
    elif checkpoint == "token":
        inputs["labels"] = make.labels(*shape).masked_fill(mask == 0, -100)
    elif checkpoint == "sequence":
        inputs["labels"] = make.labels(3)
    elif checkpoint == "span":
        inputs["start_positions"] = torch.tensor([0, 2, 3])
        inputs["end_positions"] = torch.tensor([3, 2, 4])
    else:
        labels = text.masked_fill(mask == 0, -100)
        labels[0, 2] = labels[1, 3] = labels[2, 1] = -100
        inputs["labels"] = labels
    return inputs, told_langs


def training_cases(root: Path) -> list[dict]:
    cases = []
    for number, case in enumerate(_cases()):
        checkpoint, overrides = case["checkpoint"], case.get("overrides", {})
        flags = NO_CACHE if checkpoint in _DECODERS else {}
        inputs, langs = _inputs(case, 600 + number)
        model = load(root, checkpoint, **overrides)
        loss = told(model, inputs, flags, langs)["loss"]
        loss.backward()
        arrays = {f"inputs.{k}": v.numpy() for k, v in inputs.items()}
        arrays["loss"] = loss.detach().numpy()
        untouched = [name for name, p in model.named_parameters() if p.grad is None]
        gradients = {
            name: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
            for name, p in model.named_parameters()
        }
        largest = max(float(np.abs(g).max()) for g in gradients.values())
        arrays.update({f"gradient.{k}": v for k, v in gradients.items()})
        entry = {
            "name": f"{checkpoint}/{case['name']}",
            "checkpoint": checkpoint,
            "class": CHECKPOINTS[checkpoint][0],
            **({"overrides": overrides} if overrides else {}),
            "arrays": f"{checkpoint}/{case['name']}.npz",
            "inputs": {k: f"inputs.{k}" for k in inputs},
            "flags": flags,
            "loss": "loss",
            "gradients": {k: f"gradient.{k}" for k in gradients},
            "largest_gradient": largest,
            "zero_gradients": [k for k, g in gradients.items() if np.abs(g).max() < 1e-6 * largest],
            "no_gradient": untouched,
        }
        if case.get("steps"):
            for name, cls, options in (
                ("sgd", torch.optim.SGD, SGD),
                ("adamw", torch.optim.AdamW, ADAMW),
            ):
                entry[name] = _step(root, checkpoint, inputs, arrays, name, cls, options)
        np.savez_compressed(root / entry["arrays"], **arrays)
        cases.append(entry)
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
    model(**inputs).loss.backward()
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
        arrays[f"{name}_loss"] = model(**inputs).loss.numpy()
    return result
