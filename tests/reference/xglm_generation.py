"""Greedy and beam search of the reference as token lists (see README.md for the schema).

A case is kept only when noise in the logits, far above rounding errors, changes none of its tokens.
Left-padded batches are generated row by row, without padding: that is what a batch has to give. The
reference's own batch is recorded beside it where it differs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from xglm_checkpoints import CONFIGS, load

_NOISE = 2e-4
_TRIES = 500
_EXTRA = {"return_dict_in_generate": True, "output_scores": True}


class Writer:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = {name: load(root, name) for name in ("untied", "plain", "gelu_new")}
        self.cases: list[dict] = []
        self.arrays: dict[str, np.ndarray] = {}

    def _noisy(self, model: torch.nn.Module, seed: int) -> torch.utils.hooks.RemovableHandle:
        generator = torch.Generator().manual_seed(seed)

        def add(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            return output + _NOISE * torch.randn(output.shape, generator=generator)

        return model.lm_head.register_forward_hook(add)

    def _rows(self, model: torch.nn.Module, prompts: list[list[int]], kwargs: dict) -> dict:
        """Every prompt alone, made a batch: prompts padded on the left, new tokens on the right."""
        width = max(map(len, prompts))
        pad = kwargs.get("pad_token_id", model.config.pad_token_id)
        rows, scores = [], []
        for prompt in prompts:
            length = kwargs.get("max_length")
            own = {**kwargs, **({"max_length": length - width + len(prompt)} if length else {})}
            low = kwargs.get("min_length")
            if low:
                own["min_length"] = low - width + len(prompt)
            output = model.generate(torch.tensor([prompt]), **own, **_EXTRA)
            for sequence in output.sequences.tolist():
                rows.append([model.config.pad_token_id] * (width - len(prompt)) + sequence)
            if "sequences_scores" in output:
                scores += output.sequences_scores.tolist()
        longest = max(map(len, rows))
        result = {"sequences": [row + [pad] * (longest - len(row)) for row in rows]}
        if scores:
            result["sequences_scores"] = scores
        return result

    def _batch(
        self, model: torch.nn.Module, prompts: list[list[int]], kwargs: dict
    ) -> tuple[dict, object]:
        output = model.generate(**_inputs(model, prompts), **kwargs, **_EXTRA)
        result = {"sequences": output.sequences.tolist()}
        if "sequences_scores" in output:
            result["sequences_scores"] = output.sequences_scores.tolist()
        return result, output

    def add(
        self,
        name: str,
        group: str,
        lengths: list[int],
        wanted: Callable[[list[list[int]], int], bool] | None = None,
        checkpoint: str = "untied",
        scores: bool = False,
        notes: str = "",
        unlike: tuple[dict, ...] = (),
        **kwargs: object,
    ) -> None:
        """Record one case; its prompts are the first that are robust and give what is `wanted`.

        Each of `unlike` changes some arguments; the tokens must change with it, so that the case
        shows their effect. The last of them give way when no prompt satisfies all.
        """
        model = self.models[checkpoint]
        width = max(lengths)
        for attempt in range(_TRIES):
            # Halfway through, and then every hundred tries, one requirement less.
            asked = (
                unlike[: len(unlike) - max(0, (attempt - _TRIES // 2) // 100 + 1)]
                if attempt >= _TRIES // 2
                else unlike
            )
            generator = torch.Generator().manual_seed(1000 * len(self.cases) + attempt)
            vocabulary = CONFIGS[checkpoint]["vocab_size"]
            prompts = [
                torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths
            ]
            alone = self._rows(model, prompts, kwargs)
            new = [row[width:] for row in alone["sequences"]]
            if wanted is not None and not wanted(new, model.config.pad_token_id):
                continue
            others = (
                self._rows(model, prompts, {**kwargs, **other})["sequences"] for other in asked
            )
            if any(other == alone["sequences"] for other in others):
                continue
            chosen = self._chosen_ends(model, prompts, kwargs, alone)
            if name == "beam_several_eos" and chosen == alone["sequences"]:
                continue
            if self._robust(model, prompts, kwargs, alone):
                break
        else:
            raise AssertionError(f"{name}: no prompt found")
        if asked != unlike:
            print(f"{name}: no prompt shows the effect of {unlike[len(asked) :]}")
        batch, output = self._batch(model, prompts, kwargs)
        tensors = _inputs(model, prompts)
        case: dict = {
            "name": name,
            "group": group,
            "checkpoint": checkpoint,
            "inputs": {k: v.tolist() for k, v in tensors.items()},
            "kwargs": kwargs,
            "expected": alone,
        }
        if chosen != alone["sequences"]:
            case["chosen_sequences"] = chosen
            ends = "The reference ends every sequence with the first end token"
            notes = f"{notes} {ends}; chosen_sequences has those chosen.".strip()
        if batch["sequences"] != alone["sequences"]:
            case["reference"] = batch
            notes = (
                notes + " The reference's batch differs from its rows alone, which are expected."
            ).strip()
        if "sequences_scores" in alone:
            apart = np.abs(np.subtract(batch["sequences_scores"], alone["sequences_scores"])).max()
            if "reference" not in case and apart > 1e-4:
                raise AssertionError(f"{name}: scores differ by {apart}")
        if scores:
            if len(set(lengths)) > 1:
                raise AssertionError("scores are stored for prompts of one length only")
            self.arrays[f"{name}.scores"] = torch.stack(output.scores).numpy()
            case["expected"]["scores"] = f"{name}.scores"
            if "beam_indices" in output:
                case["expected"]["beam_indices"] = output.beam_indices.tolist()
        if notes:
            case["notes"] = notes
        self.cases.append(case)

    def _chosen_ends(
        self, model: torch.nn.Module, prompts: list, kwargs: dict, expected: dict
    ) -> list[list[int]]:
        """The sequences with the end tokens that beam search chose, going by the scores."""
        eos, sequences = kwargs.get("eos_token_id"), [list(row) for row in expected["sequences"]]
        if not isinstance(eos, list) or "sequences_scores" not in expected:
            return sequences
        if len({len(prompt) for prompt in prompts}) > 1 or kwargs.get("length_penalty", 1.0) != 1.0:
            raise AssertionError(
                "several end tokens: only for prompts of one length and the default penalty"
            )
        start = len(prompts[0])
        for row, score in zip(sequences, expected["sequences_scores"], strict=True):
            end = next((i for i in range(start, len(row)) if row[i] in eos), None)
            if end is None:
                continue
            with torch.no_grad():
                steps = (
                    model(torch.tensor([row[: end + 1]])).logits[0, start - 1 : end].log_softmax(-1)
                )
            body = sum(float(steps[i - start, row[i]]) for i in range(start, end))
            row[end] = min(
                eos, key=lambda t: abs((body + float(steps[-1, t])) / (end + 1 - start) - score)
            )
        return sequences

    def _robust(self, model: torch.nn.Module, prompts: list, kwargs: dict, expected: dict) -> bool:
        for seed in range(3):
            handle = self._noisy(model, seed)
            try:
                if self._rows(model, prompts, kwargs)["sequences"] != expected["sequences"]:
                    return False
            finally:
                handle.remove()
        return True


def _inputs(model: torch.nn.Module, prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    pad = model.config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    if all(len(p) == width for p in prompts):
        return {"input_ids": ids}
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def _ends(*eos: int) -> Callable[[list[list[int]], int], bool]:
    """Rows end by one of `eos`, at different lengths; one of them may run to the limit."""

    def check(rows: list[list[int]], pad: int) -> bool:
        lengths = [next((i + 1 for i, token in enumerate(row) if token in eos), 99) for row in rows]
        return len(set(lengths)) == len(lengths) and min(lengths) >= 2 and sorted(lengths)[-2] < 99

    return check


def _uses(*tokens: int) -> Callable[[list[list[int]], int], bool]:
    return lambda rows, pad: any(token in row for row in rows for token in tokens)


def _greedy(w: Writer) -> None:
    w.add("greedy", "greedy", [5], max_new_tokens=12, scores=True)
    w.add("greedy_batch", "greedy", [4, 4, 4], max_new_tokens=10, scores=True)
    w.add("greedy_left_padding", "greedy", [3, 7, 5], max_new_tokens=10)
    w.add("greedy_no_cache", "greedy", [3, 5], max_new_tokens=8, use_cache=False)
    w.add("greedy_one_token", "greedy", [3, 1], max_new_tokens=1)
    w.add(
        "greedy_beyond_table",
        "greedy",
        [26, 28],
        max_new_tokens=12,
        eos_token_id=1,
        notes="Runs past max_position_embeddings.",
    )
    w.add("greedy_eos", "greedy", [3, 6, 4], _ends(25), max_new_tokens=12, eos_token_id=25)
    w.add(
        "greedy_several_eos",
        "greedy",
        [3, 6, 4],
        _ends(16, 7),
        max_new_tokens=12,
        eos_token_id=[16, 7],
    )
    w.add(
        "greedy_pad_token_id",
        "greedy",
        [5, 3, 4],
        _ends(4),
        max_new_tokens=12,
        eos_token_id=4,
        pad_token_id=0,
        notes="pad_token_id fills after the end token; the prompt keeps the padding it came with.",
    )
    w.add(
        "greedy_max_length",
        "greedy",
        [6, 4],
        max_length=13,
        notes="max_length counts the (padded) prompt.",
    )
    w.add(
        "greedy_default_length",
        "greedy",
        [6],
        notes="No length given: max_length 20, prompt included.",
    )
    w.add(
        "greedy_both_lengths",
        "greedy",
        [6],
        max_length=9,
        max_new_tokens=8,
        notes="max_new_tokens wins.",
    )
    w.add(
        "greedy_min_new_tokens",
        "greedy",
        [4, 6],
        _uses(25),
        unlike=({"min_new_tokens": 4},),
        max_new_tokens=12,
        min_new_tokens=5,
        eos_token_id=25,
    )
    w.add(
        "greedy_min_length",
        "greedy",
        [5, 5],
        _uses(25),
        unlike=({"min_length": 9},),
        max_new_tokens=12,
        min_length=10,
        eos_token_id=25,
        notes="min_length counts the prompt.",
    )
    w.add(
        "greedy_repetition_penalty",
        "greedy",
        [4, 4],
        max_new_tokens=12,
        repetition_penalty=1.6,
        scores=True,
    )
    w.add("greedy_repetition_reward", "greedy", [4], max_new_tokens=8, repetition_penalty=0.8)
    w.add(
        "greedy_repetition_left_padding",
        "greedy",
        [2, 6],
        unlike=({"repetition_penalty": 1.0},),
        max_new_tokens=10,
        repetition_penalty=1.4,
    )
    w.add(
        "greedy_no_repeat_ngram_2",
        "greedy",
        [4, 7],
        max_new_tokens=12,
        no_repeat_ngram_size=2,
        unlike=({"no_repeat_ngram_size": 0}, {"no_repeat_ngram_size": 3}),
    )
    w.add(
        "greedy_no_repeat_ngram_3",
        "greedy",
        [5, 5],
        unlike=({"no_repeat_ngram_size": 0},),
        max_new_tokens=14,
        no_repeat_ngram_size=3,
    )
    w.add("greedy_no_repeat_ngram_1", "greedy", [3], max_new_tokens=10, no_repeat_ngram_size=1)
    w.add(
        "greedy_bad_words",
        "greedy",
        [4, 4],
        unlike=({"bad_words_ids": None},),
        max_new_tokens=12,
        bad_words_ids=[[25], [4]],
        scores=True,
    )
    w.add(
        "greedy_bad_phrases",
        "greedy",
        [4, 6],
        max_new_tokens=12,
        bad_words_ids=[[25, 4], [16], [7, 7], [4, 25, 4]],
        unlike=({"bad_words_ids": [[16]]}, {"bad_words_ids": [[25, 4], [7, 7], [4, 25, 4]]}),
    )
    w.add(
        "greedy_all",
        "greedy",
        [5, 5],
        max_new_tokens=12,
        min_new_tokens=4,
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        bad_words_ids=[[43], [25, 4]],
        eos_token_id=[7, 6],
    )
    w.add("greedy_plain", "greedy", [3, 6], checkpoint="plain", max_new_tokens=8)
    w.add(
        "greedy_gelu_new",
        "greedy",
        [5, 2],
        checkpoint="gelu_new",
        max_new_tokens=8,
        repetition_penalty=1.5,
    )


def _beam(w: Writer) -> None:
    for beams in (2, 3, 5):
        for penalty in (-0.5, 0.5, 1.0, 2.0):
            for early in (True, False, "never"):
                unlike: list[dict] = [
                    {"num_beams": beams + 1},
                    {"early_stopping": early is not True},
                ]
                if penalty < 0:  # the shortest win at once, so that early stopping changes nothing
                    unlike.pop()
                unlike.append({"length_penalty": 0.5 if penalty >= 1 else 1.5})
                if early == "never" and penalty > 0:
                    unlike.append({"early_stopping": False})
                w.add(
                    f"beam{beams}_length{penalty}_early_{early}".lower(),
                    "beam",
                    [3, 6],
                    _uses(7),
                    unlike=tuple(unlike),
                    num_beams=beams,
                    length_penalty=penalty,
                    early_stopping=early,
                    max_new_tokens=10,
                    eos_token_id=7,
                    num_return_sequences=2 if beams == 5 else 1,
                )
    w.add(
        "beam_scores",
        "beam",
        [4, 4],
        num_beams=3,
        max_new_tokens=6,
        num_return_sequences=2,
        scores=True,
    )
    w.add(
        "beam_scores_eos",
        "beam",
        [4, 4],
        _uses(4),
        num_beams=3,
        max_new_tokens=7,
        num_return_sequences=3,
        eos_token_id=4,
        scores=True,
    )
    w.add(
        "beam_returns",
        "beam",
        [5, 5],
        num_beams=4,
        max_new_tokens=8,
        num_return_sequences=4,
        eos_token_id=16,
    )
    w.add("beam_left_padding", "beam", [2, 7, 5], num_beams=3, max_new_tokens=9)
    w.add(
        "beam_left_padding_eos",
        "beam",
        [2, 7, 5],
        _ends(7),
        num_beams=3,
        max_new_tokens=10,
        eos_token_id=7,
    )
    w.add(
        "beam_several_eos",
        "beam",
        [3, 3],
        _uses(16),
        num_beams=3,
        max_new_tokens=8,
        eos_token_id=[16, 7],
        num_return_sequences=3,
    )
    w.add("beam_no_cache", "beam", [3, 5], num_beams=2, max_new_tokens=6, use_cache=False)
    w.add(
        "beam_max_length",
        "beam",
        [5, 5],
        num_beams=3,
        max_length=12,
        eos_token_id=25,
        length_penalty=2.0,
    )
    w.add(
        "beam_max_length_never",
        "beam",
        [6, 6],
        num_beams=3,
        max_length=14,
        eos_token_id=25,
        length_penalty=2.0,
        early_stopping="never",
    )
    w.add(
        "beam_pad_token_id",
        "beam",
        [4, 4],
        _ends(7),
        num_beams=2,
        max_new_tokens=10,
        eos_token_id=7,
        pad_token_id=0,
    )
    w.add(
        "beam_min_new_tokens",
        "beam",
        [4, 4],
        _uses(25),
        unlike=({"min_new_tokens": 4},),
        num_beams=3,
        max_new_tokens=10,
        min_new_tokens=5,
        eos_token_id=25,
    )
    w.add(
        "beam_repetition_penalty",
        "beam",
        [4, 4],
        unlike=({"repetition_penalty": 1.0},),
        num_beams=3,
        max_new_tokens=8,
        repetition_penalty=1.5,
        scores=True,
    )
    w.add(
        "beam_no_repeat_ngram",
        "beam",
        [4, 4],
        unlike=({"no_repeat_ngram_size": 0},),
        num_beams=3,
        max_new_tokens=12,
        no_repeat_ngram_size=2,
    )
    w.add(
        "beam_bad_words",
        "beam",
        [4, 6],
        unlike=({"bad_words_ids": [[25]]},),
        num_beams=3,
        max_new_tokens=10,
        bad_words_ids=[[25], [4, 7], [16, 4]],
    )
    w.add(
        "beam_all",
        "beam",
        [5, 5],
        num_beams=4,
        max_new_tokens=10,
        min_new_tokens=3,
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        bad_words_ids=[[43], [25, 4]],
        eos_token_id=7,
        length_penalty=0.7,
        num_return_sequences=2,
    )
    w.add("beam_one_token", "beam", [4, 2], num_beams=3, max_new_tokens=1, num_return_sequences=3)
    w.add("beam_plain", "beam", [4, 6], checkpoint="plain", num_beams=3, max_new_tokens=7)
    w.add("beam_gelu_new", "beam", [4, 6], checkpoint="gelu_new", num_beams=2, max_new_tokens=7)


def _optional(w: Writer) -> None:
    w.add(
        "suppress_tokens",
        "optional",
        [4, 5],
        unlike=({"suppress_tokens": None},),
        max_new_tokens=10,
        suppress_tokens=[25, 4],
    )
    w.add(
        "begin_suppress_tokens",
        "optional",
        [4, 4],
        unlike=({"begin_suppress_tokens": None},),
        max_new_tokens=8,
        begin_suppress_tokens=[25, 4, 16, 7, 6, 43],
    )
    w.add("forced_eos_token_id", "optional", [4, 4], max_new_tokens=7, forced_eos_token_id=2)
    w.add(
        "forced_eos_beam",
        "optional",
        [4, 4],
        unlike=({"forced_eos_token_id": None},),
        num_beams=2,
        max_new_tokens=7,
        forced_eos_token_id=2,
    )
    w.add(
        "forced_bos_token_id",
        "optional",
        [1, 1],
        unlike=({"forced_bos_token_id": None},),
        max_new_tokens=7,
        forced_bos_token_id=9,
        notes="Acts only where the whole sequence so far has one token.",
    )
    w.add(
        "exponential_decay",
        "optional",
        [4, 4],
        _uses(25),
        unlike=({"exponential_decay_length_penalty": None},),
        max_new_tokens=16,
        eos_token_id=25,
        exponential_decay_length_penalty=[4, 1.4],
    )
    w.add(
        "renormalize",
        "optional",
        [4, 4],
        unlike=({"renormalize_logits": False},),
        max_new_tokens=6,
        num_beams=2,
        repetition_penalty=1.4,
        renormalize_logits=True,
    )


def generation_cases(root: Path) -> dict:
    writer = Writer(root)
    for group in (_greedy, _beam, _optional):
        group(writer)
    np.savez_compressed(root / "generation.npz", **writer.arrays)
    return {"about": {"noise": _NOISE, "arrays": "generation.npz"}, "cases": writer.cases}
