"""Forward passes of the reference: inputs, flags and expected outputs, one .npz per case.

The schema of the result is described in README.md. A causal model's padded batch is run row by row,
without padding: that is what a batch has to give.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_tools import left, mean_loss, padded, right, shifted_loss
from xlm_checkpoints import CHECKPOINTS, load

PAD = 2
_BASE = "XLMModel"
_PER_TOKEN = ("input_ids", "langs", "token_type_ids", "position_ids", "inputs_embeds")
ALL = {"output_hidden_states": True, "output_attentions": True}
# Every field that a class can return.
_FIELDS = {
    "XLMModel": ("last_hidden_state",),
    "XLMWithLMHeadModel": ("loss", "logits"),
    "XLMForSequenceClassification": ("loss", "logits"),
    "XLMForMultipleChoice": ("loss", "logits"),
    "XLMForTokenClassification": ("loss", "logits"),
    "XLMForQuestionAnsweringSimple": ("loss", "start_logits", "end_logits"),
    "XLMForQuestionAnswering": (
        "loss",
        "start_top_log_probs",
        "start_top_index",
        "end_top_log_probs",
        "end_top_index",
        "cls_logits",
    ),
}


class Inputs:
    """Random inputs from one seeded generator per checkpoint."""

    def __init__(self, checkpoint: str, seed: int) -> None:
        self.options = CHECKPOINTS[checkpoint][1]
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def ids(self, *shape: int) -> torch.Tensor:
        return self.below(6, self.options["vocab_size"], *shape)

    def langs(self, *shape: int) -> torch.Tensor:
        return self.below(0, self.options["n_langs"], *shape)

    def labels(self, *shape: int) -> torch.Tensor:
        return self.below(0, self.options["num_labels"], *shape)

    def numbers(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def vectors(self, *shape: int) -> torch.Tensor:
        return self.numbers(*shape, self.options["emb_dim"])

    def heads(self) -> torch.Tensor:
        sizes = self.options["n_layers"], self.options["n_heads"]
        mask = torch.rand(*sizes, generator=self.generator)
        mask[0, 1] = 0.0
        mask[-1, 2] = 1.0
        return mask


def lm_output(model: torch.nn.Module, given: dict, flags: dict) -> dict:
    """What XLMWithLMHeadModel has to return; the adaptive softmax the reference cannot call."""
    if not model.config.asm:
        return dict(model(**given, **flags))
    output = dict(model.transformer(**given, **flags))
    states = output.pop("last_hidden_state")
    scores = model.pred_layer.proj.log_prob(states.reshape(-1, states.shape[-1]))
    return {"logits": scores.reshape(*states.shape[:2], -1), **output}


def row_by_row(model: torch.nn.Module, given: dict, flags: dict, base: bool) -> dict:
    """Every row alone, without its padding, and the outputs put back where they belong."""
    mask = given["attention_mask"].bool()
    batch, width = mask.shape
    rows = []
    for row in range(batch):
        own = {k: v[row : row + 1, mask[row]] for k, v in given.items() if k in _PER_TOKEN}
        own.update({k: v for k, v in given.items() if k == "head_mask"})
        own["attention_mask"] = torch.ones(1, int(mask[row].sum()), dtype=torch.long)
        rows.append(dict(model(**own, **flags)) if base else lm_output(model, own, flags))

    def spread(values: list[torch.Tensor], axes: int) -> torch.Tensor:
        parts = []
        for row, value in enumerate(values):
            spots = torch.eye(width)[:, mask[row]]
            if axes == 1:
                parts.append(torch.einsum("wl,bl...->bw...", spots, value))
            else:
                parts.append(torch.einsum("wl,bhlk,vk->bhwv", spots, value, spots))
        return torch.cat(parts)

    result: dict = {}
    for key, value in rows[0].items():
        if isinstance(value, tuple):
            axes = 2 if key == "attentions" else 1
            result[key] = tuple(
                spread([row[key][layer] for row in rows], axes) for layer in range(len(value))
            )
        else:
            result[key] = spread([row[key] for row in rows], 1)
    return result


class Recorder:
    """Runs calls on one checkpoint and collects what cases.json says about them."""

    def __init__(self, root: Path, checkpoint: str) -> None:
        self.root, self.checkpoint = root, checkpoint
        self.make = Inputs(checkpoint, 300 + list(CHECKPOINTS).index(checkpoint))
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
    ) -> list[dict]:
        """Record one case of one step, or of several `steps` with one cache.

        A step is a dict: `inputs`, and optionally `flags`, `rows` (a causal batch: run row by row),
        `raw` (record also the reference's own main output and loss, which must not be matched),
        `valid` (which query positions count), `light` (store only the main outputs), `whole` (a
        step with a cache whose numbers come from the forward pass without one: from where on).
        """
        overrides = overrides or {}
        cls = cls or CHECKPOINTS[self.checkpoint][0]
        model = load(self.root, self.checkpoint, cls, **overrides)
        cached = steps is not None
        steps = steps or [{"inputs": inputs, "flags": flags or {}, **step}]
        arrays: dict[str, np.ndarray] = {}
        rows, returned, cache = [], [], {"slen": 0}
        for number, spec in enumerate(steps):
            prefix = f"step{number}."
            row, fields = self._step(model, cls, spec, arrays, prefix, cache if cached else None)
            rows.append(row)
            returned.append(fields)
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
        return returned

    def _step(
        self,
        model: torch.nn.Module,
        cls: str,
        spec: dict,
        arrays: dict,
        prefix: str,
        cache: dict | None,
    ) -> tuple[dict, dict]:
        inputs, flags = spec["inputs"], spec.get("flags", {})
        own_loss = cls == "XLMWithLMHeadModel"
        given = {k: v.clone() for k, v in inputs.items() if not (own_loss and k == "labels")}
        with torch.no_grad():
            fields, raw = self._run(model, cls, spec, given, flags, cache)
            if own_loss and "labels" in inputs:
                loss = shifted_loss if model.config.causal else mean_loss
                fields = {"loss": loss(fields["logits"], inputs["labels"]), **fields}
                if not model.config.asm and not spec.get("rows"):
                    theirs = model(**{**given, "labels": inputs["labels"]}, **flags)["loss"]
                    if model.config.causal:
                        raw["loss"] = theirs
                    else:
                        torch.testing.assert_close(theirs, fields["loss"])
        row: dict = {
            "inputs": {},
            "flags": flags,
            "expected": {},
            "present": [],
            "absent": [],
            "reference": {},
        }
        for key, value in inputs.items():
            arrays[prefix + key] = value.numpy()
            row["inputs"][key] = prefix + key
        fields = {k: v for k, v in fields.items() if v is not None}
        for key, value in fields.items():
            if spec.get("light") and key not in _FIELDS[cls]:
                row["present"].append(key)
            else:
                row["expected"][key] = self._store(arrays, f"{prefix}expected.{key}", value)
        everything = (*_FIELDS[cls], "hidden_states", "attentions")
        row["absent"] = [key for key in everything if key not in fields]
        for key, value in raw.items():
            arrays[f"{prefix}{key}_reference"] = value.numpy()
            row["reference"][key] = f"{prefix}{key}_reference"
        if "valid" in spec:
            arrays[prefix + "valid"] = spec["valid"].bool().numpy()
            row["valid"] = prefix + "valid"
        if cache is not None:
            row["cache"] = self._cache(spec, arrays, prefix, cache)
        return row, fields

    def _run(
        self,
        model: torch.nn.Module,
        cls: str,
        spec: dict,
        given: dict,
        flags: dict,
        cache: dict | None,
    ) -> tuple[dict, dict]:
        """The fields expected, and those of the reference's own that are wrong."""
        base = cls != "XLMWithLMHeadModel"
        raw: dict = {}
        if spec.get("rows"):
            fields = row_by_row(model, given, flags, base)
            if spec.get("raw"):
                main = _FIELDS[cls][-1]
                raw[main] = dict(model(**given, **flags))[main]
            begin = spec.get("whole", 0)
            fields = {k: self._since(k, v, begin) for k, v in fields.items()}
        elif "whole" in spec:
            whole = dict(model(**given, **flags)) if base else lm_output(model, given, flags)
            fields = {k: self._since(k, v, spec["whole"]) for k, v in whole.items()}
        elif base:
            fields = dict(model(**given, **flags, **({"cache": cache} if cache else {})))
        else:
            fields = lm_output(model, {**given, **({"cache": cache} if cache else {})}, flags)
        return fields, raw

    @staticmethod
    def _since(key: str, value: object, begin: int) -> object:
        if isinstance(value, tuple):
            return tuple(Recorder._since(key, item, begin) for item in value)
        return value[:, :, begin:] if key == "attentions" else value[:, begin:]

    def _cache(self, spec: dict, arrays: dict, prefix: str, cache: dict) -> dict:
        """What the dict has to hold after the step; its layer keys are the reference's business."""
        if "whole" in spec:
            return {"slen": spec["length"]}
        layers = [list(v) for k, v in sorted((k, v) for k, v in cache.items() if k != "slen")]
        return {
            "slen": cache["slen"],
            "layers": self._store(arrays, f"{prefix}cache", layers),
        }

    def _store(self, arrays: dict, key: str, value: object) -> object:
        if isinstance(value, torch.Tensor):
            arrays[key] = value.numpy()
            return key
        return [self._store(arrays, f"{key}.{number}", item) for number, item in enumerate(value)]


# ---- the model and the masked language model ----------------------------------------------


def _masked(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs = make.ids(2, 7), make.langs(2, 7)
    call("input_ids", {"input_ids": ids}, notes="No langs: no language embedding is added.")
    call("langs", {"input_ids": ids, "langs": langs})
    call("everything", {"input_ids": ids, "langs": langs}, ALL)
    call("token_type_ids", {"input_ids": ids, "token_type_ids": make.below(0, 2, 2, 7)})
    call(
        "position_ids",
        {"input_ids": ids, "position_ids": torch.tensor([[5, 4, 3, 9, 0, 30, 1]] * 2)},
    )
    mask = right([7, 3, 5], 7)
    text = padded(make.ids(3, 7), mask, PAD)
    call(
        "right_padding",
        {"input_ids": text, "attention_mask": mask, "langs": make.langs(3, 7)},
        ALL,
        notes="Hidden states at padding are zero; attention weights there are not.",
    )
    call("lengths", {"input_ids": make.ids(3, 7), "lengths": mask.sum(-1)}, ALL, light=True)
    call(
        "lengths_from_padding",
        {"input_ids": text},
        notes="Without mask and lengths, a row is as long as it has tokens that are not padding.",
    )
    call(
        "padding_inside",
        {"input_ids": torch.where(left([5, 7], 7).bool(), ids, PAD)},
        notes="The padding is counted wherever it stands and taken off the end.",
    )
    call(
        "mask_and_lengths",
        {"input_ids": make.ids(3, 7), "attention_mask": mask, "lengths": torch.tensor([7, 6, 7])},
        notes="The mask wins over the lengths.",
    )
    mask = left([4, 7, 6], 7)
    call(
        "left_padding",
        {"input_ids": padded(make.ids(3, 7), mask, PAD), "attention_mask": mask},
        ALL,
        notes="A masked model: positions count from the start of the row, padding included.",
    )
    call(
        "mask_with_holes",
        {
            "input_ids": make.ids(2, 7),
            "attention_mask": torch.tensor([[1, 1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 1, 1]]),
        },
    )
    call("head_mask", {"input_ids": ids, "head_mask": make.heads()}, ALL)
    call("head_mask_one_row", {"input_ids": ids, "head_mask": make.heads()[0]}, ALL, light=True)
    call(
        "inputs_embeds",
        {"inputs_embeds": make.vectors(2, 6), "langs": make.langs(2, 6)},
        ALL,
        light=True,
    )
    call(
        "inputs_embeds_lengths",
        {"inputs_embeds": make.vectors(2, 6), "lengths": torch.tensor([6, 4])},
    )
    labels = make.ids(3, 7)
    labels[0, :2] = labels[2, 5:] = labels[1, 3] = -100
    call("labels", {"input_ids": make.ids(3, 7), "langs": make.langs(3, 7), "labels": labels})
    mask = right([7, 3, 5], 7)
    call(
        "all_inputs",
        {
            "input_ids": padded(make.ids(3, 7), mask, PAD),
            "attention_mask": mask,
            "langs": make.langs(3, 7),
            "token_type_ids": make.below(0, 2, 3, 7),
            "position_ids": make.below(0, 31, 3, 7),
            "head_mask": make.heads(),
            "labels": torch.where(mask.bool(), labels, -100),
        },
        ALL,
    )
    call(
        "base_everything",
        {"input_ids": ids, "langs": langs, "lengths": torch.tensor([7, 4])},
        ALL,
        cls=_BASE,
    )
    mask = left([4, 7], 7)
    call(
        "base_left_padding",
        {"input_ids": padded(ids, mask, PAD), "attention_mask": mask},
        cls=_BASE,
    )
    call(
        "cache_filled",
        steps=[{"inputs": {"input_ids": ids, "langs": langs}}],
        notes="One call with a cache; a second one fails in the reference unless causal.",
    )
    call(
        "as_causal",
        {"input_ids": ids, "langs": langs, "labels": ids},
        overrides={"causal": True},
        notes="The same weights read as a causal model: labels are shifted.",
    )


def _single(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids = make.ids(2, 7)
    call("input_ids", {"input_ids": ids}, ALL)
    call(
        "langs",
        {"input_ids": ids, "langs": torch.zeros_like(ids)},
        notes="One language: langs are taken and change nothing.",
    )
    call(
        "no_language_embeddings",
        {"input_ids": ids, "langs": make.below(0, 5, 2, 7)},
        overrides={"n_langs": 5, "use_lang_emb": False},
        notes="Several languages without embeddings: langs are taken and change nothing.",
    )
    mask = right([4, 7, 6], 7)
    labels = torch.where(mask.bool(), make.ids(3, 7), -100)
    call(
        "labels",
        {
            "input_ids": padded(make.ids(3, 7), mask, PAD),
            "attention_mask": mask,
            "labels": labels,
        },
    )
    call("to_the_last_position", {"input_ids": make.ids(1, 29)})


def _causal(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs = make.ids(2, 7), make.langs(2, 7)
    call("input_ids", {"input_ids": ids}, ALL)
    call("langs", {"input_ids": ids, "langs": langs}, ALL)
    labels = make.ids(2, 7)
    labels[0, :2] = labels[1, 5] = -100
    call("labels", {"input_ids": ids, "langs": langs, "labels": labels})
    call("position_ids", {"input_ids": ids, "position_ids": make.below(0, 37, 2, 7)})
    call("head_mask", {"input_ids": ids, "langs": langs, "head_mask": make.heads()}, ALL)
    call("inputs_embeds", {"inputs_embeds": make.vectors(2, 6), "langs": make.langs(2, 6)})
    mask = right([7, 3, 5], 7)
    text, several = make.ids(3, 7), make.langs(3, 7)
    call(
        "right_padding",
        {"input_ids": padded(text, mask, PAD), "attention_mask": mask, "langs": several},
        ALL,
        rows=True,
        valid=mask,
    )
    call("lengths", {"input_ids": text, "lengths": mask.sum(-1), "langs": several}, valid=mask)
    mask = left([4, 7, 6], 7)
    call(
        "left_padding",
        {"input_ids": padded(text, mask, PAD), "attention_mask": mask, "langs": several},
        ALL,
        rows=True,
        raw=True,
        valid=mask,
        notes="Positions start at each row's first token, and padding is not attended to.",
    )
    labels = torch.where(mask.bool(), text, -100)
    labels[0, 3] = labels[2, 1] = -100
    call(
        "labels_left_padding",
        {
            "input_ids": padded(text, mask, PAD),
            "attention_mask": mask,
            "langs": several,
            "labels": labels,
        },
        rows=True,
        raw=True,
        valid=mask,
        notes="Each padded row's first token has the label -100: only padding stands before it.",
    )
    call(
        "base_left_padding",
        {"input_ids": padded(text, mask, PAD), "attention_mask": mask},
        {"output_hidden_states": True},
        cls=_BASE,
        rows=True,
        raw=True,
        valid=mask,
    )
    _caches(recorder)


def _caches(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs, places = make.ids(2, 8), make.langs(2, 8), make.below(0, 37, 2, 8)
    notes = "Every step is given the whole text so far and returns what is new in it."
    ends = (5, 8)
    call(
        "cache",
        steps=[
            {"inputs": {"input_ids": ids[:, :end], "langs": langs[:, :end]}, "flags": ALL}
            for end in ends
        ],
        notes=notes,
    )
    call(
        "cache_one_by_one",
        steps=[
            {"inputs": {"input_ids": ids[:, :end], "position_ids": places[:, :end]}}
            for end in (4, 5, 6)
        ],
        notes=notes,
    )
    call("base_cache", steps=[{"inputs": {"input_ids": ids[:, :end]}} for end in ends], cls=_BASE)
    mask = left([6, 8], 8)
    call(
        "cache_left_padding",
        steps=[
            {
                "inputs": {
                    "input_ids": padded(ids, mask, PAD)[:, :end],
                    "attention_mask": mask[:, :end],
                    "langs": langs[:, :end],
                },
                "rows": True,
                "whole": begin,
                "length": end,
                "valid": mask[:, begin:end],
            }
            for begin, end in ((0, 5), (5, 6), (6, 8))
        ],
        notes="Numbers of the forward pass of every row alone, without a cache.",
    )
    vectors = make.vectors(2, 8)
    call(
        "cache_inputs_embeds",
        steps=[
            {"inputs": {"inputs_embeds": vectors[:, :end]}, "whole": begin, "length": end}
            for begin, end in ((0, 5), (5, 8))
        ],
        notes="The reference fails here; the numbers are those without a cache.",
    )


def _asm(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs = make.ids(2, 7), make.langs(2, 7)
    labels = torch.tensor([[3, 10, 11, 28, 29, 46, -100], [-100, 45, 0, 12, -100, 30, 9]])
    notes = "logits are log-probabilities. The reference crashes: computed on its hidden states."
    call("input_ids", {"input_ids": ids, "langs": langs}, ALL, notes=notes)
    call("labels", {"input_ids": ids, "langs": langs, "labels": labels}, notes=notes)
    mask = right([4, 7], 7)
    call(
        "labels_right_padding",
        {
            "input_ids": padded(ids, mask, PAD),
            "attention_mask": mask,
            "labels": torch.where(mask.bool(), labels, -100),
        },
        notes=notes,
    )
    causal = {"causal": True}
    call("causal", {"input_ids": ids, "langs": langs, "labels": labels}, overrides=causal)
    call(
        "causal_cache",
        steps=[
            {"inputs": {"input_ids": ids[:, :end], "langs": langs[:, :end]}} for end in (4, 5, 7)
        ],
        overrides=causal,
    )


# ---- the heads ----------------------------------------------------------------------------


def _padded_inputs(make: Inputs, *shape: int) -> dict:
    mask = right([4, 6, 5], 6)[: shape[0]]
    if len(shape) == 3:
        mask = torch.stack([right([4, 6, 5], 6), right([6, 3, 6], 6)])
    return {
        "input_ids": padded(make.ids(*shape), mask, PAD),
        "attention_mask": mask,
        "langs": make.langs(*shape),
    }


def _every_input(make: Inputs, inputs: dict) -> dict:
    shape = inputs["input_ids"].shape
    return {
        **inputs,
        "token_type_ids": make.below(0, 2, *shape),
        "position_ids": make.below(0, 29, *shape),
        "head_mask": make.heads(),
    }


def _sequence(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = _padded_inputs(make, 3, 6)
    call("everything", _every_input(make, inputs), ALL)
    for kind in ("first", "last", "mean", "cls_index"):
        call(f"summary_{kind}", inputs, overrides={"summary_type": kind})
    for function in ("tanh", "relu", "gelu"):
        call(f"activation_{function}", inputs, overrides={"summary_activation": function})
    call(
        "dropouts",
        inputs,
        overrides={"summary_first_dropout": 0.3, "dropout": 0.2},
        notes="Evaluation mode: no dropout acts.",
    )
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6), "langs": make.langs(3, 6)})
    call("lengths", {"input_ids": make.ids(3, 6), "lengths": torch.tensor([6, 2, 4])})
    labels, several = make.labels(3), make.below(0, 2, 3, 6).float()
    targets = make.numbers(3, 6)
    call("labels", {**inputs, "labels": labels}, notes="Integers: one label each.")
    call("labels_several", {**inputs, "labels": several}, notes="Floats: several labels.")
    for kind, wanted in (
        ("single_label_classification", labels),
        ("multi_label_classification", several),
        ("regression", targets),
    ):
        call(kind, {**inputs, "labels": wanted}, overrides={"problem_type": kind})


def _sequence_one(recorder: Recorder) -> None:
    inputs = _padded_inputs(recorder.make, 3, 6)
    recorder.call("labels", {**inputs, "labels": recorder.make.numbers(3)}, notes="Regression.")
    recorder.call("labels_column", {**inputs, "labels": recorder.make.numbers(3, 1)})


def _sequence_wide(recorder: Recorder) -> None:
    inputs = _padded_inputs(recorder.make, 3, 6)
    notes = "As wide as the hidden states, which is the number of labels here."
    recorder.call("labels", {**inputs, "labels": recorder.make.labels(3)}, notes=notes)
    overrides = {"summary_type": "mean", "summary_activation": "tanh"}
    recorder.call("mean_tanh", inputs, overrides=overrides)


def _choice(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = _padded_inputs(make, 2, 3, 6)
    call("everything", _every_input(make, inputs), ALL)
    call("labels", {**inputs, "labels": torch.tensor([2, 0])})
    for kind in ("last", "mean"):
        overrides = {"summary_type": kind, "summary_activation": "tanh"}
        call(f"summary_{kind}_tanh", inputs, overrides=overrides)
    call("inputs_embeds", {"inputs_embeds": make.vectors(2, 3, 6), "langs": make.langs(2, 3, 6)})
    call(
        "lengths",
        {"input_ids": make.ids(2, 3, 6), "lengths": torch.tensor([[6, 2, 4], [3, 3, 6]])},
        notes="lengths are ignored here, with a warning.",
    )


def _token(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = _padded_inputs(make, 3, 6)
    call("everything", _every_input(make, inputs), ALL)
    labels = make.labels(3, 6)
    labels[0, 0] = labels[1, 4] = -100
    labels[inputs["attention_mask"] == 0] = -100
    call("labels", {**inputs, "labels": labels})
    call(
        "labels_at_padding",
        {**inputs, "labels": make.labels(3, 6)},
        notes="Labels at padding count: only -100 does not.",
    )
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6), "langs": make.langs(3, 6)})


def _span(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = _padded_inputs(make, 3, 6)
    call("everything", _every_input(make, inputs), ALL)

    def spans(start: list, end: list) -> dict:
        return {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}

    call("positions", {**inputs, **spans([0, 2, 1], [3, 2, 4])})
    call(
        "positions_outside",
        {**inputs, **spans([0, 6, 1], [3, 40, 17])},
        notes="Positions at or beyond the width are left out of the mean.",
    )
    call(
        "positions_below",
        {**inputs, **spans([-1, 2, 1], [3, -7, 4])},
        notes="Negative positions count as 0.",
    )
    call("positions_column", {**inputs, **spans([[0], [2], [1]], [[3], [2], [4]])})
    call(
        "start_only",
        {**inputs, "start_positions": torch.tensor([0, 2, 1])},
        notes="One of the two alone gives no loss.",
    )
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6), "langs": make.langs(3, 6)})


def _beam_span(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = _padded_inputs(make, 3, 6)
    # One padding at most in a row: two have equal states and would tie.
    inputs["attention_mask"] = right([5, 6, 5], 6)
    covered = (1 - inputs["attention_mask"]).float()
    covered[1, 0] = covered[0, 1] = 1.0
    found = []
    found += call("everything", _every_input(make, inputs), ALL)
    found += call("inference", inputs)
    found += call("p_mask", {**inputs, "p_mask": covered})
    found += call("cls_index", {**inputs, "cls_index": torch.tensor([0, 3, 2])})
    found += call("n_top", inputs, overrides={"start_n_top": 2, "end_n_top": 4})
    found += call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6)})
    for fields in found:
        _distinct(fields)
    start, end = torch.tensor([0, 2, 3]), torch.tensor([3, 2, 4])
    spans = {"start_positions": start, "end_positions": end}
    classes = {"cls_index": torch.tensor([0, 3, 2]), "is_impossible": torch.tensor([1.0, 0.0, 1.0])}
    call("loss", {**inputs, **spans}, notes="With both positions only the loss is returned.")
    call("loss_p_mask", {**inputs, **spans, "p_mask": covered}, ALL)
    call("loss_impossible", {**inputs, **spans, **classes})
    call(
        "loss_impossible_no_index",
        {**inputs, **spans, "is_impossible": classes["is_impossible"]},
        notes="Without cls_index the last position of the row is read.",
    )
    call("loss_cls_index", {**inputs, **spans, "cls_index": classes["cls_index"]})
    call("loss_everything", {**_every_input(make, inputs), **spans, **classes, "p_mask": covered})
    columns = {k: v[:, None] for k, v in {**spans, **classes}.items()}
    call("loss_columns", {**inputs, **columns})


def _distinct(fields: dict) -> None:
    """No two kept probabilities so near each other that rounding could change their order."""
    top = fields["start_top_log_probs"]
    gaps = [-top.diff(dim=-1)]
    starts = top.shape[-1]
    gaps.append(-fields["end_top_log_probs"].reshape(len(top), -1, starts).diff(dim=1))
    smallest = min(float(gap.min()) for gap in gaps)
    if smallest < 1e-4:
        raise AssertionError(f"two beams are only {smallest} apart")


def call_cases(root: Path) -> list[dict]:
    makers = {
        "plain": _masked,
        "causal": _causal,
        "single": _single,
        "asm": _asm,
        "sequence": _sequence,
        "sequence_one": _sequence_one,
        "sequence_hidden": _sequence_wide,
        "sequence_bare": _sequence_wide,
        "choice": _choice,
        "token": _token,
        "span": _span,
        "beam_span": _beam_span,
    }
    cases = []
    for checkpoint, make in makers.items():
        recorder = Recorder(root, checkpoint)
        make(recorder)
        cases += recorder.cases
    return cases
