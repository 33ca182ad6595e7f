"""Runs calls on a Transformer-XL checkpoint and collects what cases.json says about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transfo_xl_checkpoints import CHECKPOINTS, load

PAD = 1
ALL = {"output_hidden_states": True, "output_attentions": True}
# Every field that a class can return.
_FIELDS = {
    "TransfoXLModel": ("last_hidden_state",),
    "TransfoXLLMHeadModel": ("loss", "losses", "prediction_scores"),
    "TransfoXLForSequenceClassification": ("loss", "logits"),
}
_PER_LAYER = ("mems", "hidden_states", "attentions")


class Inputs:
    """Random inputs from one seeded generator per checkpoint."""

    def __init__(self, checkpoint: str, seed: int) -> None:
        self.options = CHECKPOINTS[checkpoint][1]
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def ids(self, *shape: int) -> torch.Tensor:
        return self.below(2, self.options["vocab_size"], *shape)

    def labels(self, *shape: int) -> torch.Tensor:
        return self.below(0, self.options["num_labels"], *shape)

    def numbers(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def vectors(self, *shape: int) -> torch.Tensor:
        return self.numbers(*shape, self.options["d_model"])

    def mems(self, length: int, batch: int) -> list[torch.Tensor]:
        return [self.vectors(length, batch) for _ in range(self.options["n_layer"])]

    def heads(self) -> torch.Tensor:
        sizes = self.options["n_layer"], self.options["n_head"]
        mask = torch.rand(*sizes, generator=self.generator)
        mask[0, 1] = 0.0
        mask[-1, 2 % sizes[1]] = 1.0
        return mask


def token_losses(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each label under the log-probabilities one position earlier, zero at -100."""
    wanted = labels[:, 1:]
    chosen = scores[:, :-1].gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return torch.where(wanted == -100, torch.zeros_like(chosen), -chosen)


def mean_of_labels(losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return losses.sum() / (labels[:, 1:] != -100).sum()


class Recorder:
    def __init__(self, root: Path, checkpoint: str) -> None:
        self.root, self.checkpoint = root, checkpoint
        self.make = Inputs(checkpoint, 700 + list(CHECKPOINTS).index(checkpoint))
        self.cases: list[dict] = []

    def call(
        self,
        name: str,
        inputs: dict | None = None,
        flags: dict | None = None,
        *,
        steps: list[dict] | None = None,
        cls: str | None = None,
        notes: str = "",
        overrides: dict | None = None,
        right: dict | None = None,
        **step: object,
    ) -> None:
        """Record one case of one step, or of several `steps`, each with the mems of the one before.

        `right` has config values that give what is expected, where the reference's own is wrong.
        A step is a dict: `inputs`, and optionally `flags`, `light` (store only the main outputs),
        `fresh` (do not pass the mems on), `memory` (reset the memory to this length first).
        """
        overrides = overrides or {}
        cls = cls or CHECKPOINTS[self.checkpoint][0]
        model = load(self.root, self.checkpoint, cls, **{**overrides, **(right or {})})
        wrong = load(self.root, self.checkpoint, cls, **overrides) if right else None
        steps = steps or [{"inputs": inputs, "flags": flags or {}, **step}]
        arrays: dict[str, np.ndarray] = {}
        rows, mems = [], None
        for number, spec in enumerate(steps):
            given = None if spec.get("fresh") else mems
            row, mems = self._step(model, cls, spec, arrays, f"step{number}.", given, wrong)
            rows.append(row)
        path = f"{self.checkpoint}/{name}.npz"
        np.savez_compressed(self.root / path, **arrays)
        self.cases.append(
            {
                "name": f"{self.checkpoint}/{name}",
                "checkpoint": self.checkpoint,
                "class": cls,
                **({"overrides": overrides} if overrides else {}),
                "arrays": path,
                **({"notes": notes} if notes else {}),
                "steps": rows,
            }
        )

    def _step(
        self,
        model: torch.nn.Module,
        cls: str,
        spec: dict,
        arrays: dict,
        prefix: str,
        mems: list | None,
        wrong: torch.nn.Module | None,
    ) -> tuple[dict, list | None]:
        inputs, flags, mains = spec["inputs"], spec.get("flags", {}), _FIELDS[cls]
        if "memory" in spec:
            model.reset_memory_length(spec["memory"])
        with torch.no_grad():
            fields, raw = _run(model, spec, mems)
            if wrong is not None:
                own = _run(wrong, spec, mems)[0]
                raw = {key: own[key] for key in mains if key in own}
        row: dict = {
            "inputs": {key: _store(arrays, prefix + key, value) for key, value in inputs.items()},
            "flags": flags,
            **({"reset_memory_length": spec["memory"]} if "memory" in spec else {}),
            **({"use_mems": True} if mems is not None else {}),
            "expected": {},
            "present": [],
            "absent": [],
            "reference": {},
        }
        # What is an empty tuple in the reference is neither asked for nor forbidden.
        for key, value in fields.items():
            if value is None or (isinstance(value, (tuple, list)) and not value):
                continue
            if spec.get("light") and key not in mains:
                row["present"].append(key)
            else:
                row["expected"][key] = _store(arrays, f"{prefix}expected.{key}", value)
        row["absent"] = [key for key in (*mains, *_PER_LAYER) if fields.get(key) is None]
        for key, value in raw.items():
            row["reference"][key] = _store(arrays, f"{prefix}{key}_reference", value)
        return row, fields.get("mems")


def _run(model: torch.nn.Module, spec: dict, mems: list | None) -> tuple[dict, dict]:
    """The fields expected, and those of the reference's own that are wrong."""
    flags = spec.get("flags", {})
    given = {k: v.clone() if torch.is_tensor(v) else v for k, v in spec["inputs"].items()}
    if mems is not None:
        given["mems"] = mems
    labels = given.get("labels")
    fields = dict(model(**given, **flags))
    if labels is None or "losses" not in fields:
        return fields, {}
    labels = spec["inputs"]["labels"]  # the reference changes its own in place
    del given["labels"]
    losses = token_losses(model(**given).prediction_scores, labels)
    loss, raw = mean_of_labels(losses, labels), {}
    if not _same(fields["losses"], losses):
        raw["losses"] = fields["losses"]
    if not _same(fields["loss"], loss):
        raw["loss"] = fields["loss"]
    return {**fields, "losses": losses, "loss": loss}, raw


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-5)


def _store(arrays: dict, key: str, value: object) -> object:
    if torch.is_tensor(value):
        arrays[key] = value.detach().numpy()
        return key
    return [_store(arrays, f"{key}.{number}", item) for number, item in enumerate(value)]
