"""Gradients of every parameter and one optimiser step, from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transfo_xl_checkpoints import CHECKPOINTS, load
from transfo_xl_recorder import PAD, Inputs, mean_of_labels, token_losses

SGD = {"lr": 0.1}
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-5, "weight_decay": 0.01}


def _cases() -> list[dict]:
    """Name, folder, and what is not as usual: overrides, mems, optimiser steps."""
    return [
        {"name": "training", "checkpoint": "plain", "steps": True},
        *({"name": "training", "checkpoint": name} for name in ("narrow", "untied")),
        *(
            {"name": "training_mems", "checkpoint": name, "mems": True}
            for name in ("one_width", "pre_norm")
        ),
        {
            "name": "training_growing",
            "checkpoint": "plain",
            "overrides": {"same_length": False, "clamp_len": 3},
            "mems": True,
        },
        {"name": "training", "checkpoint": "sequence"},
        {"name": "training", "checkpoint": "sequence_one"},
    ]


def _inputs(case: dict, model: torch.nn.Module, seed: int) -> dict:
    """Inputs with labels; the mems are those of a segment before."""
    checkpoint = case["checkpoint"]
    make = Inputs(checkpoint, seed)
    ids = make.ids(3, 6)
    if checkpoint.startswith("sequence"):
        ids[0, 4:] = PAD
        one = checkpoint == "sequence_one"
        return {"input_ids": ids, "labels": make.numbers(3) if one else make.labels(3)}
    labels = ids.clone()
    labels[0, 2] = labels[1, 3] = labels[2, 5] = -100
    # The last token of every cluster is among the labels, so that each has a gradient.
    ends = [*make.options["cutoffs"], make.options["vocab_size"]]
    for number, end in enumerate(ends):
        labels[number % 3, 1 + 3 * (number // 3)] = end - 1
    inputs: dict = {"input_ids": ids, "labels": labels}
    if case.get("mems"):
        with torch.no_grad():
            inputs["mems"] = list(model(make.ids(3, 5)).mems)
    return inputs


def _flat(inputs: dict) -> tuple[dict, dict]:
    """Array keys for the inputs, and the arrays."""
    keys: dict = {}
    arrays: dict = {}
    for name, value in inputs.items():
        if isinstance(value, list):
            keys[name] = [f"inputs.{name}.{n}" for n in range(len(value))]
            arrays.update({k: v.numpy() for k, v in zip(keys[name], value, strict=True)})
        else:
            keys[name] = f"inputs.{name}"
            arrays[keys[name]] = value.numpy()
    return keys, arrays


def _fresh(inputs: dict) -> dict:
    return {k: v.clone() if torch.is_tensor(v) else v for k, v in inputs.items()}


def _gradients(model: torch.nn.Module, loss: torch.Tensor, arrays: dict) -> dict:
    """Store the gradient of every parameter; say which are zero and which were not computed."""
    loss.backward()
    arrays["loss"] = loss.detach().numpy()
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    gradients = {
        name: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
        for name, p in model.named_parameters()
    }
    largest = max(float(np.abs(g).max()) for g in gradients.values())
    arrays.update({f"gradient.{k}": v for k, v in gradients.items()})
    return {
        "loss": "loss",
        "gradients": {k: f"gradient.{k}" for k in gradients},
        "largest_gradient": largest,
        "zero_gradients": [k for k, g in gradients.items() if np.abs(g).max() < 1e-6 * largest],
        "no_gradient": untouched,
    }


def training_cases(root: Path) -> list[dict]:
    cases = []
    for number, case in enumerate(_cases()):
        checkpoint, overrides = case["checkpoint"], case.get("overrides", {})
        model = load(root, checkpoint, **overrides)
        inputs = _inputs(case, model, 800 + number)
        keys, arrays = _flat(inputs)
        entry = {
            "name": f"{checkpoint}/{case['name']}",
            "checkpoint": checkpoint,
            "class": CHECKPOINTS[checkpoint][0],
            **({"overrides": overrides} if overrides else {}),
            "arrays": f"{checkpoint}/{case['name']}.npz",
            "inputs": keys,
            "flags": {},
            **_gradients(model, model(**_fresh(inputs)).loss, arrays),
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
    model(**_fresh(inputs)).loss.backward()
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
        arrays[f"{name}_loss"] = model(**_fresh(inputs)).loss.numpy()
    return result


def segment_cases(root: Path) -> list[dict]:
    """The loss summed over segments that hand on their mems, and its gradients."""
    cases = []
    for number, checkpoint in enumerate(("plain", "one_width")):
        model = load(root, checkpoint)
        make = Inputs(checkpoint, 900 + number)
        text = make.ids(2, 15)
        total, mems, losses = torch.zeros(()), None, []
        segments = text.split([4, 6, 5], 1)
        for segment in segments:
            output = model(segment, labels=segment.clone(), mems=mems)
            mems = output.mems
            assert not any(memory.requires_grad for memory in mems), "mems carry a gradient"
            total = total + output.loss
            losses.append(output.loss.detach())
        with torch.no_grad():
            first = model(segments[0])
            own = mean_of_labels(token_losses(first.prediction_scores, segments[0]), segments[0])
        torch.testing.assert_close(own, losses[0])
        arrays = {f"segment.{n}": s.numpy() for n, s in enumerate(segments)}
        arrays |= {"losses": torch.stack(losses).numpy()}
        path = f"{checkpoint}/training_segments.npz"
        cases.append(
            {
                "name": f"{checkpoint}/training_segments",
                "checkpoint": checkpoint,
                "class": CHECKPOINTS[checkpoint][0],
                "arrays": path,
                "segments": [f"segment.{n}" for n in range(len(segments))],
                "losses": "losses",
                **_gradients(model, total, arrays),
            }
        )
        np.savez_compressed(root / path, **arrays)
    return cases
