"""Random inputs and recorded calls of X-MOD; the schema of the result is in README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from xmod_checkpoints import CHECKPOINTS, load
from xmod_languages import languages

PAD = 1
ALL = {"output_hidden_states": True, "output_attentions": True}
NO_CACHE = {"use_cache": False}
WITHOUT_POOLER = {"add_pooling_layer": False}
# Every field that a class can return.
_FIELDS = {
    "XmodModel": ("last_hidden_state", "pooler_output"),
    "XmodForQuestionAnswering": ("loss", "start_logits", "end_logits"),
}
_TEXT = ("input_ids", "inputs_embeds")
_PER_LAYER = ("past_key_values", "hidden_states", "attentions", "cross_attentions")


class Inputs:
    """Random inputs from one seeded generator per checkpoint."""

    def __init__(self, checkpoint: str, seed: int) -> None:
        self.options = CHECKPOINTS[checkpoint][1]
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def ids(self, *shape: int) -> torch.Tensor:
        return self.below(4, self.options["vocab_size"], *shape)

    def langs(self, *shape: int) -> torch.Tensor:
        return self.below(0, len(self.options["languages"]), *shape)

    def types(self, *shape: int) -> torch.Tensor:
        return self.below(0, self.options["type_vocab_size"], *shape)

    def labels(self, *shape: int) -> torch.Tensor:
        return self.below(0, self.options["num_labels"], *shape)

    def numbers(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def vectors(self, *shape: int) -> torch.Tensor:
        return self.numbers(*shape, self.options["hidden_size"])

    def heads(self) -> torch.Tensor:
        sizes = self.options["num_hidden_layers"], self.options["num_attention_heads"]
        mask = torch.rand(*sizes, generator=self.generator)
        mask[0, 1] = 0.0
        mask[-1, 2] = 1.0
        return mask


def told(model: torch.nn.Module, given: dict, flags: dict, langs: torch.Tensor | None) -> dict:
    """A call, with `langs` for every token in place of `lang_ids` where they are given."""
    if langs is None:
        return dict(model(**given, **flags))
    given = {k: v for k, v in given.items() if k != "lang_ids"}
    with languages(model, langs):
        return dict(model(**given, **flags))


class Recorder:
    """Runs calls on one checkpoint and collects what cases.json says about them."""

    def __init__(self, root: Path, checkpoint: str) -> None:
        self.root, self.checkpoint = root, checkpoint
        self.make = Inputs(checkpoint, 500 + list(CHECKPOINTS).index(checkpoint))
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
        **step: object,
    ) -> None:
        """Record one case of one step, or of several `steps`, each with the past of the one before.

        A step is a dict: `inputs`, and optionally `flags`, `light` (store only the main outputs),
        `valid` and `valid_keys` (which query and cache positions count), `langs` (a language for
        each token, which the reference knows only with help), `hidden` (inputs that the reference
        needs to be right and the file does not show), `whole` (the inputs of the whole text, whose
        uncached numbers are expected), `raw` (record also what the reference says by itself).
        """
        overrides = overrides or {}
        cls = cls or CHECKPOINTS[self.checkpoint][0]
        model = load(self.root, self.checkpoint, cls, **overrides)
        steps = steps or [{"inputs": inputs, "flags": flags or {}, **step}]
        arrays: dict[str, np.ndarray] = {}
        rows, past = [], None
        for number, spec in enumerate(steps):
            row, past = self._step(model, cls, spec, arrays, f"step{number}.", past)
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
        past: tuple | None,
    ) -> tuple[dict, tuple | None]:
        inputs, flags = spec["inputs"], spec.get("flags", {})
        mains = _FIELDS.get(cls, ("loss", "logits"))
        with torch.no_grad():
            fields, raw = self._run(model, mains, spec, past)
        row: dict = {
            "inputs": {key: prefix + key for key in inputs},
            "flags": flags,
            **({"use_past": True} if past is not None else {}),
            "expected": {},
            "present": [],
            "absent": [],
            "reference": {},
        }
        arrays.update({prefix + key: value.numpy() for key, value in inputs.items()})
        # What is an empty tuple in the reference is neither asked for nor forbidden.
        for key, value in fields.items():
            if value is None or (isinstance(value, tuple) and not value):
                continue
            if key == "cross_attentions" and isinstance(value[0], tuple):
                continue  # without an encoder the reference returns keys and values here
            if spec.get("light") and key not in mains:
                row["present"].append(key)
            else:
                row["expected"][key] = self._store(arrays, f"{prefix}expected.{key}", value)
        everything = (*mains, *_PER_LAYER)
        row["absent"] = [key for key in everything if fields.get(key) is None]
        for key, value in raw.items():
            arrays[f"{prefix}{key}_reference"] = value.numpy()
            row["reference"][key] = f"{prefix}{key}_reference"
        for key in ("valid", "valid_keys"):
            mask = spec.get(key, spec.get("valid"))
            if mask is not None:
                arrays[prefix + key] = mask.bool().numpy()
                row[key] = prefix + key
        return row, fields.get("past_key_values")

    def _run(
        self, model: torch.nn.Module, mains: tuple, spec: dict, past: tuple | None
    ) -> tuple[dict, dict]:
        """The fields expected, and those of the reference's own that are wrong."""
        flags, langs = spec.get("flags", {}), spec.get("langs")
        given = {k: v.clone() for k, v in spec["inputs"].items()}
        cached = {**given, **({"past_key_values": past} if past is not None else {})}
        if "whole" in spec:
            whole = told(model, spec["whole"], flags, langs)
            length = next(v.shape[1] for k, v in given.items() if k in _TEXT)
            begin = next(v.shape[1] for k, v in spec["whole"].items() if k in _TEXT) - length
            fields = {k: self._since(k, v, begin) for k, v in whole.items()}
        else:
            fields = told(model, {**cached, **spec.get("hidden", {})}, flags, langs)
        raw: dict = {}
        if spec.get("raw"):
            main = next(key for key in mains if key != "loss")
            raw[main] = told(model, cached, flags, langs)[main]
        return fields, raw

    @staticmethod
    def _since(key: str, value: object, begin: int) -> object:
        if key == "past_key_values":
            return value
        if isinstance(value, tuple):
            return tuple(Recorder._since(key, item, begin) for item in value)
        return value[:, :, begin:] if "attentions" in key else value[:, begin:]

    def _store(self, arrays: dict, key: str, value: object) -> object:
        if isinstance(value, torch.Tensor):
            arrays[key] = value.numpy()
            return key
        return [self._store(arrays, f"{key}.{number}", item) for number, item in enumerate(value)]
