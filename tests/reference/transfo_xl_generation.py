"""Greedy and beam search of the reference as token lists (see README.md for the schema).

The reference knows no padding. So every prompt is generated alone; a batch of prompts of one length
must give the same. A case is kept only when noise in the scores, far above rounding errors, changes
none of its tokens, and when forward passes that hand on the mems agree on tokens and scores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transfo_xl_checkpoints import load

_NOISE = 2e-4
_TRIES = 400
_EXTRA = {"return_dict_in_generate": True, "output_scores": True}
# From the id of _RARE on, a token is in no checkpoint's first cluster.
_PAD, _EOS, _RARE = 1, 0, 13


class Writer:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.cases: list[dict] = []
        self.arrays: dict[str, np.ndarray] = {}

    def _alone(self, model: torch.nn.Module, inputs: dict, kwargs: dict) -> tuple[dict, list]:
        """Every prompt alone, made a batch: prompts padded on the left, new tokens on the right."""
        pad = model.config.pad_token_id if model.config.pad_token_id is not None else _EOS
        width = max(map(len, inputs["input_ids"]))
        rows, scores, outputs = [], [], []
        for prompt in inputs["input_ids"]:
            own = dict(kwargs)
            for key in ("max_length", "min_length"):  # they count the padding too
                if key in own:
                    own[key] += len(prompt) - width
            output = model.generate(torch.tensor([prompt]), **own, **_EXTRA)
            outputs.append(output)
            for sequence in output.sequences.tolist():
                rows.append([pad] * (width - len(prompt)) + sequence)
            if "sequences_scores" in output:
                scores += output.sequences_scores.tolist()
        longest = max(map(len, rows))
        result: dict = {"sequences": [row + [pad] * (longest - len(row)) for row in rows]}
        if scores:
            result["sequences_scores"] = scores
        return result, outputs

    def _robust(self, model: torch.nn.Module, inputs: dict, kwargs: dict, found: dict) -> bool:
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)

            def add(
                _module: object, _inputs: object, output: object, generator: object = generator
            ) -> object:
                scores = output["prediction_scores"]
                noise = _NOISE * torch.randn(scores.shape, generator=generator)
                output["prediction_scores"] = scores + noise
                return output

            handle = model.register_forward_hook(add)
            noisy = self._alone(model, inputs, kwargs)[0]
            handle.remove()
            if noisy["sequences"] != found["sequences"]:
                return False
        return True

    def _agrees(self, model: torch.nn.Module, inputs: dict, kwargs: dict, found: dict) -> None:
        """The prompt in one pass, then a token at a time with the mems before, says the same."""
        rows = inputs["input_ids"]
        width, several = max(map(len, rows)), len(found["sequences"]) // len(rows)
        for number, sequence in enumerate(found["sequences"]):
            prompt = rows[number // several]
            new = _stripped(sequence[width:])
            steps = _steps(model, prompt, new)
            if "sequences_scores" in found:
                total = sum(step[t].item() for step, t in zip(steps, new, strict=True))
                score = total / len(new) ** kwargs.get("length_penalty", 1.0)
                if abs(score - found["sequences_scores"][number]) > 1e-4:
                    raise AssertionError(f"{score} is not {found['sequences_scores'][number]}")
            elif not {"min_new_tokens", "repetition_penalty"} & set(kwargs):
                best = [step.argmax().item() for step in steps]
                if best != new:
                    raise AssertionError(f"{best} is not {new}")

    def add(
        self,
        name: str,
        group: str,
        lengths: list[int],
        wanted: Callable[[list[list[int]]], bool] | None = None,
        checkpoint: str = "text",
        scores: bool = False,
        notes: str = "",
        overrides: dict | None = None,
        unlike: tuple[dict, ...] = (),
        **kwargs: object,
    ) -> None:
        """Record one case; its prompts are the first that are robust and give what is `wanted`.

        Each of `unlike` changes some arguments, or some of `overrides`, and the tokens with them.
        """
        overrides = overrides or {}
        model = load(self.root, checkpoint, **overrides)
        vocabulary, width = model.config.vocab_size, max(lengths)
        others = [_split(model.config, other) for other in unlike]
        for attempt in range(_TRIES):
            generator = torch.Generator().manual_seed(1000 * len(self.cases) + attempt)

            def draw(n: int, generator: object = generator) -> list[int]:
                return torch.randint(2, vocabulary, (n,), generator=generator).tolist()

            inputs: dict = {"input_ids": [draw(n) for n in lengths]}
            found, outputs = self._alone(model, inputs, kwargs)
            new = [_stripped(row[width:]) for row in found["sequences"]]
            if any(model.config.pad_token_id in row for row in new):
                continue
            if wanted is not None and not wanted(new):
                continue
            if not all(
                self._changes(checkpoint, overrides, inputs, kwargs, found, *other)
                for other in others
            ):
                continue
            if self._robust(model, inputs, kwargs, found):
                break
        else:
            raise AssertionError(f"{name}: no prompt found")
        self._agrees(model, inputs, kwargs, found)
        batch = _batch(inputs)
        case: dict = {
            "name": name,
            "group": group,
            "checkpoint": checkpoint,
            **({"overrides": overrides} if overrides else {}),
            "inputs": batch,
            "kwargs": kwargs,
            "expected": found,
        }
        if len(set(lengths)) == 1:  # a batch of other lengths the reference refuses
            own = model.generate(torch.tensor(batch["input_ids"]), **kwargs).tolist()
            if own != found["sequences"]:
                raise AssertionError(f"{name}: the batch differs from its rows")
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
        self,
        checkpoint: str,
        overrides: dict,
        inputs: dict,
        kwargs: dict,
        found: dict,
        config: dict,
        options: dict,
    ) -> bool:
        model = load(self.root, checkpoint, **{**overrides, **config})
        return self._alone(model, inputs, {**kwargs, **options})[0] != found


def _steps(model: torch.nn.Module, prompt: list[int], new: list[int]) -> list[torch.Tensor]:
    """The scores before each new token: one by one, or without memory all again each time."""
    steps, mems = [], None
    for number in range(len(new)):
        segment = new[number - 1 : number] if number else prompt
        if not model.config.mem_len:
            segment = prompt + new[:number]
        with torch.no_grad():
            output = model(torch.tensor([segment]), mems=mems)
        mems = output.get("mems")
        steps.append(output.prediction_scores[0, -1])
    return steps


def _split(config: object, options: dict) -> tuple[dict, dict]:
    """Values of the model's config, and arguments of `generate`."""
    own = {k: v for k, v in options.items() if k in ("mem_len", "clamp_len", "same_length")}
    return own, {k: v for k, v in options.items() if k not in own}


def _stripped(row: list[int]) -> list[int]:
    return row[: row.index(_EOS) + 1] if _EOS in row else row


def _batch(inputs: dict) -> dict:
    """The prompts as one batch, padded on the left with a mask where their lengths differ."""
    rows = inputs["input_ids"]
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    result = {"input_ids": [[_PAD] * gap + row for gap, row in zip(gaps, rows, strict=True)]}
    if any(gaps):
        result["attention_mask"] = [[0] * gap + [1] * (width - gap) for gap in gaps]
    return result


def _ends(rows: list[list[int]]) -> bool:
    """Every row ends before the limit, and not at once."""
    return all(_EOS in row and row.index(_EOS) > 1 for row in rows)


def _some_end(rows: list[list[int]]) -> bool:
    ends = [_EOS in row for row in rows]
    return any(ends) and not all(ends) and _varied(rows)


def _one_ends(rows: list[list[int]]) -> bool:
    return any(_EOS in row and len(row) > 2 for row in rows)


def _runs(rows: list[list[int]]) -> bool:
    return _varied(rows) and all(_EOS not in row and len(set(row)) > 3 for row in rows)


def _varied(rows: list[list[int]]) -> bool:
    """Different tokens, and not of the first cluster only."""
    return all(len(set(row)) > 2 for row in rows) and max(map(max, rows)) >= _RARE


_NO_MEMORY, _ONE_BEAM = {"mem_len": 0, "same_length": False}, {"num_beams": 1}
_LONG = "The prompt is longer than the memory."


def _greedy(writer: Writer) -> None:
    def add(name: str, *args: object, **kwargs: object) -> None:
        writer.add(name, "greedy", *args, **kwargs)

    memory = (_NO_MEMORY,)
    add("greedy", [5], _runs, max_new_tokens=8, scores=True, unlike=memory)
    add("greedy_ends", [4], _ends, max_new_tokens=12, unlike=memory)
    add("greedy_batch", [5, 5, 5], _some_end, max_new_tokens=9, unlike=memory)
    add("greedy_left_padding", [3, 6, 5], _some_end, max_new_tokens=9, unlike=memory)
    add("greedy_left_padding_one_token", [1, 7], _varied, max_new_tokens=7, unlike=memory)
    add("greedy_long_prompt", [14, 14], _varied, max_new_tokens=7, notes=_LONG)
    add(
        "greedy_long_prompt_left_padding",
        [14, 4, 10],
        _varied,
        overrides={"mem_len": 5},
        max_new_tokens=8,
        unlike=({"mem_len": 4},),
        notes=_LONG,
    )
    add("greedy_long_text", [4], _varied, max_new_tokens=30, min_new_tokens=28, unlike=memory)
    add(
        "greedy_no_memory",
        [5, 5],
        _varied,
        overrides=_NO_MEMORY,
        max_new_tokens=7,
        notes="The whole text is read again at every step.",
    )
    add(
        "greedy_growing",
        [5, 3],
        _varied,
        overrides={"same_length": False, "clamp_len": -1},
        max_new_tokens=9,
        unlike=({"clamp_len": 2},),
    )
    add(
        "greedy_clamped",
        [6, 4],
        _varied,
        overrides={"clamp_len": 3},
        max_new_tokens=9,
        unlike=({"clamp_len": -1},),
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
        [6, 6],
        _varied,
        max_new_tokens=9,
        repetition_penalty=1.6,
        no_repeat_ngram_size=2,
        unlike=({"repetition_penalty": 1.0},),
    )
    for checkpoint in ("one_width", "pre_norm", "untied"):
        add(
            f"greedy_{checkpoint}",
            [4, 4],
            _varied,
            checkpoint=checkpoint,
            max_new_tokens=8,
            unlike=memory,
        )


def _beam(writer: Writer) -> None:
    def add(name: str, *args: object, **kwargs: object) -> None:
        writer.add(name, "beam", *args, **kwargs)

    both = (_ONE_BEAM, _NO_MEMORY)
    add("beam", [5], num_beams=3, max_new_tokens=6, scores=True, unlike=both)
    add("beam_batch", [4, 4], _one_ends, num_beams=2, max_new_tokens=8, unlike=both)
    add("beam_left_padding", [3, 6, 5], num_beams=3, max_new_tokens=8, unlike=both)
    add(
        "beam_long_prompt",
        [13, 13],
        overrides={"mem_len": 4},
        num_beams=3,
        max_new_tokens=7,
        unlike=both,
        notes=_LONG,
    )
    add(
        "beam_all_returned",
        [4, 4],
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=7,
        length_penalty=2.0,
        unlike=({"length_penalty": 0.0},),
    )
    add("beam_early_stopping", [5, 5], num_beams=3, max_new_tokens=9, early_stopping=True)
    add("beam_growing", [5, 3], overrides={"same_length": False}, num_beams=2, max_new_tokens=8)
    for checkpoint in ("one_width", "pre_norm", "untied"):
        add(
            f"beam_{checkpoint}",
            [4, 4],
            checkpoint=checkpoint,
            num_beams=3,
            max_new_tokens=6,
            unlike=(_ONE_BEAM,),
        )


def generation_cases(root: Path) -> dict:
    writer = Writer(root)
    _greedy(writer)
    _beam(writer)
    np.savez_compressed(root / "generation.npz", **writer.arrays)
    return {
        "about": {
            "arrays": "generation.npz",
            "padding": "left, with the id 1, which is what the folder `text` says",
        },
        "cases": writer.cases,
    }
