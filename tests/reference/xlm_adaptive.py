"""The adaptive softmax by itself, on states of two and of three dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from xlm_checkpoints import load


def adaptive_cases(root: Path) -> dict:
    """Torch's own adaptive softmax, with the weights of `asm`, gradients included."""
    model = load(root, "asm")
    head = model.pred_layer.proj
    config = model.config
    generator = torch.Generator().manual_seed(500)
    states = torch.randn(2, 7, config.emb_dim, generator=generator)
    # Both sides of every cut, and the ends.
    targets = torch.tensor([[0, 10, 11, 28, 29, 46, 5], [46, 30, 27, 12, 9, 1, 40]])
    leaf = states.reshape(-1, config.emb_dim).clone().requires_grad_(True)
    chosen, loss = head(leaf, targets.flatten())
    loss.backward()
    with torch.no_grad():
        scores = head.log_prob(leaf)
        torch.testing.assert_close(scores.gather(1, targets.flatten()[:, None])[:, 0], chosen)
        best = head.predict(leaf)
        assert torch.equal(best, scores.argmax(-1))
    names = [k for k, _ in head.named_parameters() if k != "weight"]
    arrays = {
        "states": states,
        "targets": targets,
        "log_probabilities": scores.reshape(2, 7, -1),
        "chosen": chosen.detach().reshape(2, 7),
        "best": best.reshape(2, 7),
        "loss": loss.detach(),
        "gradient.states": leaf.grad.reshape(states.shape),
        **{f"gradient.pred_layer.proj.{k}": head.get_parameter(k).grad for k in names},
    }
    np.savez_compressed(root / "asm" / "adaptive.npz", **{k: v.numpy() for k, v in arrays.items()})
    return {
        "about": "states (2, 7, emb_dim), also to be given flat as (14, emb_dim)",
        "checkpoint": "asm",
        "arrays": "asm/adaptive.npz",
        "cutoffs": list(config.asm_cutoffs),
        "div_value": config.asm_div_value,
    }
