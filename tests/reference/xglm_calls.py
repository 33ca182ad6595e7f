"""Forward passes of the reference: inputs, flags and expected outputs, one .npz per case.

The schema of the result is described in README.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_tools import left, padded, positions, right, shifted_loss
from xglm_checkpoints import CONFIGS, load

LONG = torch.long
_LM, _BASE = "XGLMForCausalLM", "XGLMModel"
_PER_LAYER = ("hidden_states", "attentions", "cross_attentions")


class Inputs:
    """Random inputs from one seeded generator per case."""

    def __init__(self, checkpoint: str, seed: int) -> None:
        self.options = CONFIGS[checkpoint]
        self.generator = torch.Generator().manual_seed(seed)

    def ids(self, batch: int, length: int) -> torch.Tensor:
        return torch.randint(
            3, self.options["vocab_size"], (batch, length), generator=self.generator
        )

    def vectors(self, batch: int, length: int) -> torch.Tensor:
        return torch.randn(batch, length, self.options["d_model"], generator=self.generator)

    def heads(self) -> torch.Tensor:
        mask = torch.rand(
            self.options["num_layers"], self.options["attention_heads"], generator=self.generator
        )
        mask[0, 1] = 0.0
        mask[1, 2] = 1.0
        return mask


class Recorder:
    """Runs calls on one checkpoint and collects what cases.json says about them."""

    def __init__(self, root: Path, checkpoint: str) -> None:
        self.root, self.checkpoint = root, checkpoint
        self.lm = load(root, checkpoint)
        self.cases: list[dict] = []

    def call(self, name: str, steps: list[dict], cls: str = _LM, notes: str = "") -> list[dict]:
        """Record one case.

        A step is a dict: `inputs` (what xlmfam is given) and optionally `flags`, `hidden` (inputs
        that only the reference is given, such as the positions it gets wrong), `valid` (which query
        positions count), `raw` (also record the reference's output without `hidden`) and `light`
        (store only loss and main output, and list the other fields as present).
        """
        model = self.lm if cls == _LM else self.lm.model
        arrays: dict[str, np.ndarray] = {}
        rows, returned, past = [], [], None
        for number, step in enumerate(steps):
            prefix = f"step{number}."
            inputs, flags, hidden = step["inputs"], step.get("flags", {}), step.get("hidden", {})
            labels = inputs.get("labels")
            given = {k: v.clone() for k, v in {**inputs, **hidden}.items()}
            with torch.no_grad():
                output = model(**given, **flags, **({"past_key_values": past} if number else {}))
                raw = None
                if step.get("raw"):
                    raw = model(
                        **{k: v.clone() for k, v in inputs.items()},
                        **flags,
                        **({"past_key_values": past} if number else {}),
                    )
            row: dict = {
                "inputs": {},
                "flags": flags,
                "expected": {},
                "present": [],
                "absent": [],
                "reference": {},
            }
            main = "logits" if cls == _LM else "last_hidden_state"
            for key, value in inputs.items():
                arrays[prefix + key] = value.numpy()
                row["inputs"][key] = prefix + key
            if number:
                row["use_past"] = True
            fields = {key: output[key] for key in output}
            if labels is not None:
                arrays[prefix + "loss_reference"] = fields["loss"].numpy()
                row["reference"]["loss"] = prefix + "loss_reference"
                fields["loss"] = shifted_loss(output.logits, labels)
            for key, value in fields.items():
                if step.get("light") and key not in (main, "loss"):
                    row["present"].append(key)
                    continue
                row["expected"][key] = self._store(arrays, f"{prefix}expected.{key}", value)
            everything = ["past_key_values", *_PER_LAYER] + (["loss"] if cls == _LM else [])
            row["absent"] = [key for key in everything if key not in fields]
            if raw is not None:
                arrays[f"{prefix}{main}_reference"] = raw[main].numpy()
                row["reference"][main] = f"{prefix}{main}_reference"
            if "valid" in step:
                arrays[prefix + "valid"] = step["valid"].bool().numpy()
                row["valid"] = prefix + "valid"
                keys = step.get("valid_keys", step["valid"])
                arrays[prefix + "valid_keys"] = keys.bool().numpy()
                row["valid_keys"] = prefix + "valid_keys"
            past = fields.get("past_key_values")
            rows.append(row)
            returned.append({**fields, "raw": raw})
        path = f"{self.checkpoint}/{name}.npz"
        np.savez_compressed(self.root / path, **arrays)
        self.cases.append(
            {
                "name": f"{self.checkpoint}/{name}",
                "checkpoint": self.checkpoint,
                "class": cls,
                "arrays": path,
                **({"notes": notes} if notes else {}),
                "steps": rows,
            }
        )
        return returned

    def _store(self, arrays: dict, key: str, value: object) -> object:
        if isinstance(value, torch.Tensor):
            arrays[key] = value.numpy()
            return key
        return [self._store(arrays, f"{key}.{number}", item) for number, item in enumerate(value)]


ALL = {"output_hidden_states": True, "output_attentions": True}


def _self_attention(recorder: Recorder, seed: int, everything: bool) -> None:
    """What every checkpoint can do; a few of these for the checkpoints that vary one option."""
    make = Inputs(recorder.checkpoint, seed)
    ids = make.ids(2, 7)
    recorder.call("input_ids", [{"inputs": {"input_ids": ids}, "flags": {"use_cache": False}}])

    mask = left([4, 7, 6], 7)
    text = padded(make.ids(3, 7), mask)
    recorder.call(
        "left_padding",
        [
            {
                "inputs": {"input_ids": text, "attention_mask": mask},
                "flags": {**ALL, "use_cache": False} if everything else {"use_cache": False},
                "hidden": {"position_ids": positions(mask)},
                "valid": mask,
                "raw": True,
            }
        ],
        notes="No position_ids are passed; positions start at each row's first real token. "
        "The reference was given them; its own result without them is under `reference`.",
    )
    labels = make.ids(3, 7)
    labels[0, :2] = -100
    labels[2, 5:] = -100
    recorder.call(
        "labels",
        [
            {
                "inputs": {"input_ids": make.ids(3, 7), "labels": labels},
                "flags": {"use_cache": False},
            }
        ],
    )
    longer = CONFIGS[recorder.checkpoint]["max_position_embeddings"] + 8
    recorder.call(
        "beyond_table",
        [{"inputs": {"input_ids": make.ids(1, longer)}, "flags": {"use_cache": False}}],
        notes="Longer than max_position_embeddings: the sinusoidal table grows.",
    )
    if not everything:
        return

    recorder.call(
        "cache_returned", [{"inputs": {"input_ids": ids}}], notes="use_cache comes from the config."
    )
    mask = right([7, 3, 5], 7)
    recorder.call(
        "right_padding",
        [
            {
                "inputs": {"input_ids": padded(make.ids(3, 7), mask), "attention_mask": mask},
                "flags": {**ALL, "use_cache": False},
                "valid": mask,
            }
        ],
    )
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 1, 1]])
    recorder.call(
        "mask_with_holes",
        [
            {
                "inputs": {"input_ids": make.ids(2, 7), "attention_mask": mask},
                "flags": {"use_cache": False},
                "hidden": {"position_ids": positions(mask)},
                "valid": mask,
                "raw": True,
            }
        ],
        notes="Only leading padding moves positions; a hole inside a row does not.",
    )
    recorder.call(
        "position_ids",
        [
            {
                "inputs": {
                    "input_ids": make.ids(2, 6),
                    "position_ids": torch.tensor([[5, 4, 3, 9, 0, 36], [0, 1, 1, 2, 30, 7]]),
                },
                "flags": {"use_cache": False},
            }
        ],
    )
    recorder.call(
        "position_ids_and_mask",
        [
            {
                "inputs": {
                    "input_ids": make.ids(2, 6),
                    "attention_mask": left([3, 6], 6),
                    "position_ids": torch.tensor([[8, 8, 8, 8, 9, 10], [3, 4, 5, 6, 7, 8]]),
                },
                "flags": {"use_cache": False},
                "valid": left([3, 6], 6),
            }
        ],
        notes="Explicit positions win over what the mask says.",
    )
    recorder.call(
        "inputs_embeds",
        [
            {
                "inputs": {"inputs_embeds": make.vectors(2, 5)},
                "flags": {"use_cache": False, "output_hidden_states": True},
            }
        ],
        notes="inputs_embeds are taken as they are: not multiplied by sqrt(d_model).",
    )
    mask = left([2, 5], 5)
    recorder.call(
        "inputs_embeds_left_padding",
        [
            {
                "inputs": {"inputs_embeds": make.vectors(2, 5), "attention_mask": mask},
                "hidden": {"position_ids": positions(mask)},
                "flags": {"use_cache": False},
                "valid": mask,
                "raw": True,
            }
        ],
    )
    mask = left([4, 7, 5], 7)
    text = padded(make.ids(3, 7), mask)
    labels = text.masked_fill(mask == 0, -100)
    labels[0, 3] = labels[2, 2] = labels[1, 3] = -100
    recorder.call(
        "labels_left_padding",
        [
            {
                "inputs": {"input_ids": text, "attention_mask": mask, "labels": labels},
                "hidden": {"position_ids": positions(mask)},
                "flags": {"use_cache": False},
                "valid": mask,
                "raw": True,
            }
        ],
        notes="Each row's first real token has the label -100: only padding stands before it.",
    )
    recorder.call(
        "head_mask",
        [
            {
                "inputs": {"input_ids": make.ids(2, 6), "head_mask": make.heads()},
                "flags": {**ALL, "use_cache": False},
            }
        ],
    )
    recorder.call(
        "everything",
        [{"inputs": {"input_ids": make.ids(2, 5)}, "flags": {**ALL, "use_cache": True}}],
    )
    _caches(recorder, make)
    _base(recorder, make)


def _caches(recorder: Recorder, make: Inputs) -> None:
    ids = make.ids(2, 8)
    cache = {"use_cache": True}
    recorder.call(
        "past",
        [
            {"inputs": {"input_ids": ids[:, :5]}, "flags": cache, "light": True},
            {"inputs": {"input_ids": ids[:, 5:]}, "flags": {**cache, **ALL}},
        ],
    )
    recorder.call(
        "past_one_by_one",
        [{"inputs": {"input_ids": ids[:, :4]}, "flags": cache, "light": True}]
        + [
            {"inputs": {"input_ids": ids[:, n : n + 1]}, "flags": cache, "light": True}
            for n in (4, 5, 6)
        ],
    )
    for name, mask, start in (
        ("past_left_padding", left([6, 9, 7], 9), 5),
        ("past_left_padding_one_by_one", left([5, 7, 6], 7), 4),
    ):
        text = padded(make.ids(*mask.shape), mask)
        place = positions(mask)
        ends = (
            [start, mask.shape[1]] if "one" not in name else list(range(start, mask.shape[1] + 1))
        )
        steps, begin = [], 0
        for end in ends:
            steps.append(
                {
                    "inputs": {"input_ids": text[:, begin:end], "attention_mask": mask[:, :end]},
                    "hidden": {"position_ids": place[:, begin:end]},
                    "flags": cache,
                    "valid": mask[:, begin:end],
                    "valid_keys": mask[:, :end],
                    "light": "one" in name or end == start,
                }
            )
            begin = end
        recorder.call(
            name,
            steps,
            notes="The mask covers past and new tokens together; no position_ids are passed.",
        )
    recorder.call(
        "past_positions",
        [
            {
                "inputs": {
                    "input_ids": ids[:, :3],
                    "position_ids": torch.tensor([[4, 5, 6], [0, 2, 4]]),
                },
                "flags": cache,
                "light": True,
            },
            {
                "inputs": {
                    "input_ids": ids[:, 3:5],
                    "position_ids": torch.tensor([[7, 8], [6, 8]]),
                },
                "flags": cache,
                "light": True,
            },
        ],
    )
    long = CONFIGS[recorder.checkpoint]["max_position_embeddings"]
    more = make.ids(1, long + 5)
    recorder.call(
        "past_beyond_table",
        [
            {"inputs": {"input_ids": more[:, : long - 2]}, "flags": cache, "light": True},
            {"inputs": {"input_ids": more[:, long - 2 :]}, "flags": cache, "light": True},
        ],
        notes="The continuation crosses the end of the initial sinusoidal table.",
    )


def _base(recorder: Recorder, make: Inputs) -> None:
    recorder.call(
        "base_input_ids",
        [{"inputs": {"input_ids": make.ids(2, 6)}, "flags": ALL, "light": True}],
        cls=_BASE,
    )
    mask = left([3, 6], 6)
    recorder.call(
        "base_left_padding",
        [
            {
                "inputs": {"input_ids": padded(make.ids(2, 6), mask), "attention_mask": mask},
                "hidden": {"position_ids": positions(mask)},
                "valid": mask,
                "raw": True,
                "light": True,
            }
        ],
        cls=_BASE,
    )
    ids = make.ids(2, 6)
    recorder.call(
        "base_past",
        [
            {"inputs": {"input_ids": ids[:, :4]}, "light": True},
            {"inputs": {"input_ids": ids[:, 4:]}, "flags": {"output_hidden_states": True}},
        ],
        cls=_BASE,
    )


def _cross_attention(recorder: Recorder, seed: int) -> None:
    make = Inputs(recorder.checkpoint, seed)
    ids, states = make.ids(3, 6), make.vectors(3, 5)
    recorder.call(
        "without_encoder",
        [{"inputs": {"input_ids": ids}, "flags": {**ALL, "use_cache": False}}],
        notes="No encoder_hidden_states: the cross-attention blocks are skipped.",
    )
    recorder.call(
        "encoder",
        [
            {
                "inputs": {"input_ids": ids, "encoder_hidden_states": states},
                "flags": {**ALL, "use_cache": False},
            }
        ],
    )
    seen = right([5, 2, 4], 5)
    recorder.call(
        "encoder_mask",
        [
            {
                "inputs": {
                    "input_ids": ids,
                    "encoder_hidden_states": states,
                    "encoder_attention_mask": seen,
                },
                "flags": {**ALL, "use_cache": False},
            }
        ],
    )
    recorder.call(
        "head_masks",
        [
            {
                "inputs": {
                    "input_ids": ids,
                    "encoder_hidden_states": states,
                    "head_mask": make.heads(),
                    "cross_attn_head_mask": make.heads(),
                },
                "flags": {"output_attentions": True, "use_cache": False},
            }
        ],
    )
    mask = left([3, 6, 5], 6)
    recorder.call(
        "encoder_left_padding",
        [
            {
                "inputs": {
                    "input_ids": padded(make.ids(3, 6), mask),
                    "attention_mask": mask,
                    "encoder_hidden_states": states,
                    "encoder_attention_mask": seen,
                },
                "hidden": {"position_ids": positions(mask)},
                "flags": {"use_cache": False, "output_attentions": True},
                "valid": mask,
                "raw": True,
            }
        ],
    )
    encoder = {"encoder_hidden_states": states, "encoder_attention_mask": seen}
    cache = {"use_cache": True}
    recorder.call(
        "encoder_past",
        [
            {"inputs": {"input_ids": ids[:, :4], **encoder}, "flags": cache},
            {
                "inputs": {"input_ids": ids[:, 4:], **encoder},
                "flags": {**cache, "output_attentions": True},
            },
        ],
        notes="A layer's past is four tensors: own keys, own values, cross keys, cross values.",
    )
    recorder.call(
        "encoder_past_left_padding",
        [
            {
                "inputs": {"input_ids": ids[:, :4], "attention_mask": mask[:, :4], **encoder},
                "hidden": {"position_ids": positions(mask)[:, :4]},
                "flags": cache,
                "light": True,
                "valid": mask[:, :4],
            },
            {
                "inputs": {"input_ids": ids[:, 4:], "attention_mask": mask, **encoder},
                "hidden": {"position_ids": positions(mask)[:, 4:]},
                "flags": cache,
                "light": True,
                "valid": mask[:, 4:],
                "valid_keys": mask,
            },
        ],
    )
    labels = make.ids(3, 6)
    labels[1, 2:4] = -100
    recorder.call(
        "encoder_labels",
        [
            {
                "inputs": {"input_ids": ids, "labels": labels, **encoder},
                "flags": {"use_cache": False},
            }
        ],
    )
    recorder.call(
        "base_encoder",
        [{"inputs": {"input_ids": ids, **encoder}, "flags": ALL, "light": True}],
        cls=_BASE,
    )


def call_cases(root: Path) -> list[dict]:
    cases = []
    for number, checkpoint in enumerate(CONFIGS):
        recorder = Recorder(root, checkpoint)
        if checkpoint == "cross":
            _cross_attention(recorder, 100 + number)
        else:
            _self_attention(recorder, 100 + number, everything=checkpoint == "plain")
        cases += recorder.cases
    return cases
