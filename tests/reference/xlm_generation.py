"""Greedy and beam search of the reference as token lists (see README.md for the schema).

The reference's own `generate` appends a mask token even to causal models, and knows no languages.
So its search runs here on models that are told what to do at each step: causal models read the text
as it is, masked ones with a mask token at the end, both with a language per token. A case is kept
only when noise in the logits, far above rounding errors, changes none of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from xlm_checkpoints import load

_NOISE = 2e-4
_TRIES = 400
_EXTRA = {"return_dict_in_generate": True, "output_scores": True}
_PAD, _EOS = 2, 1


def _told(model: torch.nn.Module) -> torch.nn.Module:
    """The model, with each step of its generation spelled out; the last language goes on."""

    def prepare(input_ids: torch.Tensor, langs: torch.Tensor | None = None, **_: object) -> dict:
        config = model.config
        if not config.causal:
            mask = torch.full_like(input_ids[:, :1], config.mask_token_id)
            input_ids = torch.cat([input_ids, mask], 1)
        if langs is None and config.lang_id is not None:
            langs = torch.full_like(input_ids, config.lang_id)
        elif langs is not None:
            missing = input_ids.shape[1] - langs.shape[1]
            langs = torch.cat([langs, langs[:, -1:].expand(-1, missing)], 1)
        seen = torch.ones_like(input_ids)
        return {"input_ids": input_ids, "attention_mask": seen, "langs": langs}

    model.prepare_inputs_for_generation = prepare
    return model


class Writer:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.cases: list[dict] = []
        self.arrays: dict[str, np.ndarray] = {}

    def _alone(self, model: torch.nn.Module, inputs: dict, kwargs: dict) -> tuple[dict, list]:
        """Every prompt alone, made a batch: prompts padded on the left, new tokens on the right."""
        width = max(map(len, inputs["input_ids"]))
        rows, scores, outputs = [], [], []
        for number, prompt in enumerate(inputs["input_ids"]):
            own = dict(kwargs)
            for key in ("max_length", "min_length"):  # they count the padding too
                if key in own:
                    own[key] += len(prompt) - width
            if "langs" in inputs:
                own["langs"] = torch.tensor([inputs["langs"][number]])
            output = model.generate(torch.tensor([prompt]), **own, **_EXTRA)
            outputs.append(output)
            for sequence in output.sequences.tolist():
                rows.append([_PAD] * (width - len(prompt)) + sequence)
            if "sequences_scores" in output:
                scores += output.sequences_scores.tolist()
        longest = max(map(len, rows))
        result: dict = {"sequences": [row + [_PAD] * (longest - len(row)) for row in rows]}
        if scores:
            result["sequences_scores"] = scores
        return result, outputs

    def _robust(self, model: torch.nn.Module, inputs: dict, kwargs: dict, found: dict) -> bool:
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)

            def add(
                _module: object, _inputs: object, output: object, generator: object = generator
            ) -> object:
                noise = _NOISE * torch.randn(output["logits"].shape, generator=generator)
                output["logits"] = output["logits"] + noise
                return output

            handle = model.register_forward_hook(add)
            noisy = self._alone(model, inputs, kwargs)[0]
            handle.remove()
            if noisy["sequences"] != found["sequences"]:
                return False
        return True

    def add(
        self,
        name: str,
        group: str,
        lengths: list[int],
        wanted: Callable[[list[list[int]]], bool] | None = None,
        checkpoint: str = "causal",
        langs: str = "rows",
        scores: bool = False,
        notes: str = "",
        overrides: dict | None = None,
        unlike: tuple[dict, ...] = (),
        **kwargs: object,
    ) -> None:
        """Record one case; its prompts are the first that are robust and give what is `wanted`.

        `langs` is "rows" (one per prompt), "tokens" (any per token) or "none". Each of `unlike`
        changes some arguments (`langs` too), and the tokens must change with it.
        """
        overrides = overrides or {}
        model = _told(load(self.root, checkpoint, **overrides))
        vocabulary, kinds = model.config.vocab_size, model.config.n_langs
        width = max(lengths)
        for attempt in range(_TRIES):
            generator = torch.Generator().manual_seed(1000 * len(self.cases) + attempt)

            def draw(low: int, high: int, n: int, generator: object = generator) -> list[int]:
                return torch.randint(low, high, (n,), generator=generator).tolist()

            inputs: dict = {"input_ids": [draw(6, vocabulary, n) for n in lengths]}
            if langs == "rows":
                inputs["langs"] = [draw(0, kinds, 1) * n for n in lengths]
            elif langs == "tokens":
                inputs["langs"] = [draw(0, kinds, n) for n in lengths]
            found, outputs = self._alone(model, inputs, kwargs)
            new = [row[width:] for row in found["sequences"]]
            stripped = [row[: row.index(_EOS) + 1] if _EOS in row else row for row in new]
            if any(_PAD in row for row in stripped):
                continue
            if wanted is not None and not wanted(stripped):
                continue
            if not all(self._changes(model, inputs, kwargs, found, other) for other in unlike):
                continue
            if self._robust(model, inputs, kwargs, found):
                break
        else:
            raise AssertionError(f"{name}: no prompt found")
        case: dict = {
            "name": name,
            "group": group,
            "checkpoint": checkpoint,
            **({"overrides": overrides} if overrides else {}),
            "inputs": _batch(inputs),
            "kwargs": kwargs,
            "expected": found,
        }
        own = self._reference(checkpoint, overrides, case)
        if group == "masked" and langs == "none":
            assert own == found["sequences"], f"{name}: the reference differs"
        elif own is not None and own != found["sequences"]:
            case["reference"] = {"sequences": own}
        if scores:
            (output,) = outputs
            self.arrays[name] = torch.stack(output.scores).numpy()
            found["scores"] = name
            if "beam_indices" in output and output.beam_indices is not None:
                found["beam_indices"] = output.beam_indices.tolist()
        if notes:
            case["notes"] = notes
        self.cases.append(case)

    def _changes(
        self, model: torch.nn.Module, inputs: dict, kwargs: dict, found: dict, other: dict
    ) -> bool:
        given, options = dict(inputs), {**kwargs, **other}
        if options.pop("langs", inputs) is None:
            given.pop("langs")
        return self._alone(model, given, options)[0]["sequences"] != found["sequences"]

    def _reference(self, checkpoint: str, overrides: dict, case: dict) -> list | None:
        """The reference's own `generate` on the same arguments."""
        tensors = {k: torch.tensor(v) for k, v in case["inputs"].items()}
        model = load(self.root, checkpoint, **overrides)
        return model.generate(**tensors, **case["kwargs"]).tolist()


def _batch(inputs: dict) -> dict:
    """The prompts as one batch, padded on the left with a mask where their lengths differ."""
    rows = inputs["input_ids"]
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    result = {"input_ids": [[_PAD] * gap + row for gap, row in zip(gaps, rows, strict=True)]}
    if any(gaps):
        result["attention_mask"] = [[0] * gap + [1] * (width - gap) for gap in gaps]
    if "langs" in inputs:
        result["langs"] = [
            row[:1] * gap + row for gap, row in zip(gaps, inputs["langs"], strict=True)
        ]
    return result


def _ends(rows: list[list[int]]) -> bool:
    """Every row ends before the limit, and not at once."""
    return all(_EOS in row and row.index(_EOS) > 1 for row in rows)


def _some_end(rows: list[list[int]]) -> bool:
    ends = [_EOS in row for row in rows]
    return any(ends) and not all(ends) and all(len(set(row)) > 2 for row in rows)


def _one_ends(rows: list[list[int]]) -> bool:
    return any(_EOS in row and len(row) > 2 for row in rows)


def _runs(rows: list[list[int]]) -> bool:
    return all(_EOS not in row and len(set(row)) > 3 for row in rows)


def _varied(rows: list[list[int]]) -> bool:
    return all(len(set(row)) > 2 for row in rows)


def _greedy(writer: Writer) -> None:
    def add(name: str, *args: object, **kwargs: object) -> None:
        writer.add(name, "greedy", *args, **kwargs)

    no_langs = {"langs": None}
    add("greedy_no_langs", [5], _runs, langs="none", max_new_tokens=8, scores=True)
    add(
        "greedy_lang_id",
        [4],
        _varied,
        langs="none",
        overrides={"lang_id": 2},
        max_new_tokens=8,
        notes="Without langs the language is config.lang_id (0 by default).",
    )
    add("greedy", [5], _runs, max_new_tokens=8, scores=True, unlike=(no_langs,))
    add("greedy_ends", [4], _ends, max_new_tokens=12, unlike=(no_langs,))
    add("greedy_batch", [5, 5, 5], _some_end, max_new_tokens=9, unlike=(no_langs,))
    add("greedy_left_padding", [3, 6, 5], _some_end, max_new_tokens=9, unlike=(no_langs,))
    add("greedy_left_padding_no_langs", [2, 6], _varied, langs="none", max_new_tokens=9)
    add(
        "greedy_langs_per_token",
        [3, 5],
        _varied,
        langs="tokens",
        max_new_tokens=7,
        unlike=(no_langs,),
        notes="New tokens have the language of the last token of their prompt.",
    )
    add("greedy_max_length", [4, 2], _varied, max_length=11)
    add(
        "greedy_min_new_tokens",
        [4],
        max_new_tokens=9,
        min_new_tokens=6,
        unlike=({"min_new_tokens": 0},),
    )
    add(
        "greedy_penalties",
        [4, 6],
        _varied,
        max_new_tokens=9,
        repetition_penalty=1.6,
        no_repeat_ngram_size=2,
        unlike=({"repetition_penalty": 1.0}, no_langs),
        notes="The penalty sees the prompt's own tokens.",
    )
    add("greedy_to_the_last_position", [4], _varied, max_length=37, min_new_tokens=33)


def _beam(writer: Writer) -> None:
    def add(name: str, *args: object, **kwargs: object) -> None:
        writer.add(name, "beam", *args, **kwargs)

    no_langs, greedy = {"langs": None}, {"num_beams": 1}
    add("beam_no_langs", [5], langs="none", num_beams=3, max_new_tokens=7, unlike=(greedy,))
    add("beam", [5], num_beams=3, max_new_tokens=6, scores=True, unlike=(greedy, no_langs))
    add("beam_batch", [4, 4], _one_ends, num_beams=2, max_new_tokens=8, unlike=(greedy, no_langs))
    add("beam_left_padding", [3, 6, 5], num_beams=3, max_new_tokens=8, unlike=(greedy, no_langs))
    add(
        "beam_langs_per_token",
        [4, 6],
        langs="tokens",
        num_beams=2,
        max_new_tokens=7,
        unlike=(greedy, no_langs),
    )
    add(
        "beam_all_returned",
        [4, 3],
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=7,
        length_penalty=2.0,
        unlike=({"length_penalty": 0.0},),
    )
    add("beam_early_stopping", [5, 3], num_beams=3, max_new_tokens=9, early_stopping=True)


def _masked(writer: Writer) -> None:
    def add(name: str, *args: object, **kwargs: object) -> None:
        writer.add(name, "masked", *args, checkpoint="plain", **kwargs)

    add("masked_greedy", [5], _varied, langs="none", max_new_tokens=7, scores=True)
    add("masked_greedy_batch", [4, 4, 4], _varied, langs="none", max_new_tokens=7)
    add(
        "masked_mask_token",
        [5],
        _varied,
        langs="none",
        overrides={"mask_token_id": 5},
        max_new_tokens=6,
        notes="The appended token is config.mask_token_id, which is 0 by default, not mask_index.",
    )
    add("masked_lang_id", [5], langs="none", overrides={"lang_id": 1}, max_new_tokens=6)
    add("masked_beam", [5, 5], langs="none", num_beams=3, max_new_tokens=6)
    add("masked_langs", [4, 4], max_new_tokens=6, unlike=({"langs": None},))
    add("masked_beam_langs", [4], num_beams=2, max_new_tokens=6, unlike=({"langs": None},))


def generation_cases(root: Path) -> dict:
    writer = Writer(root)
    _greedy(writer)
    _beam(writer)
    _masked(writer)
    np.savez_compressed(root / "generation.npz", **writer.arrays)
    return {
        "about": {
            "arrays": "generation.npz",
            "padding": "left, with pad_token_id; langs there repeat the row's first",
        },
        "cases": writer.cases,
    }
