"""Greedy and beam search of the reference as token lists (see README.md for the schema).

The reference's own `generate` takes the default language whatever it is told, and places the tokens
after left padding wrongly. So every prompt is generated alone, with its language as the default.
A case is kept only when noise in the logits, far above rounding errors, changes none of its tokens,
and when forward passes without a cache, with `lang_ids`, agree on tokens and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from xmod_checkpoints import load
from xmod_languages import languages

_NOISE = 2e-4
_TRIES = 400
_EXTRA = {"return_dict_in_generate": True, "output_scores": True}
_PAD, _EOS = 1, 2


@contextmanager
def _speaking(model: torch.nn.Module, langs: list[int]) -> Iterator[None]:
    """One prompt's languages: the last of them goes on with the new tokens."""
    if len(set(langs)) == 1:
        before = model.config.default_language
        model.set_default_language(model.config.languages[langs[0]])
        yield
        model.config.default_language = before
        return
    row = torch.zeros(1, model.config.max_position_embeddings, dtype=torch.long)
    row[0, : len(langs)] = torch.tensor(langs)
    row[0, len(langs) :] = langs[-1]
    forward = model.forward

    def whole(*args: object, input_ids: torch.Tensor, **kwargs: object) -> object:
        with languages(model, row[:, : input_ids.shape[1]]):
            return forward(*args, input_ids=input_ids, **{**kwargs, "use_cache": False})

    model.forward = whole
    yield
    model.forward = forward


class Writer:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.cases: list[dict] = []
        self.arrays: dict[str, np.ndarray] = {}

    def _alone(self, model: torch.nn.Module, inputs: dict, kwargs: dict) -> tuple[dict, list]:
        """Every prompt alone, made a batch: prompts padded on the left, new tokens on the right."""
        width = max(map(len, inputs["input_ids"]))
        rows, scores, outputs = [], [], []
        default = model.config.languages.index(model.config.default_language)
        for number, prompt in enumerate(inputs["input_ids"]):
            own = dict(kwargs)
            for key in ("max_length", "min_length"):  # they count the padding too
                if key in own:
                    own[key] += len(prompt) - width
            langs = inputs["lang_ids"][number] if "lang_ids" in inputs else default
            langs = langs if isinstance(langs, list) else [langs]
            with _speaking(model, langs):
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

    def _agrees(self, model: torch.nn.Module, inputs: dict, kwargs: dict, found: dict) -> None:
        """Forward passes over the whole text, with its languages, say the same."""
        rows = inputs["input_ids"]
        width, several = max(map(len, rows)), len(found["sequences"]) // len(rows)
        default = model.config.languages.index(model.config.default_language)
        for number, sequence in enumerate(found["sequences"]):
            prompt = rows[number // several]
            langs = inputs["lang_ids"][number // several] if "lang_ids" in inputs else default
            langs = langs if isinstance(langs, list) else [langs]
            new = sequence[width:]
            new = new[: new.index(_EOS) + 1] if _EOS in new else new
            text = torch.tensor([prompt + new])
            spoken = torch.tensor([(langs + langs[-1:] * text.shape[1])[: text.shape[1]]])
            with torch.no_grad():
                if len(set(langs)) == 1:
                    logits = model(text, lang_ids=torch.tensor(langs[:1])).logits[0]
                else:
                    with languages(model, spoken):
                        logits = model(text, use_cache=False).logits[0]
            steps = logits[len(prompt) - 1 : -1]
            if not model.config.is_decoder:  # what follows changes what stands before
                continue
            if "sequences_scores" in found:
                total = sum(steps.log_softmax(-1)[i, t].item() for i, t in enumerate(new))
                score = total / len(new) ** kwargs.get("length_penalty", 1.0)
                if abs(score - found["sequences_scores"][number]) > 1e-4:
                    raise AssertionError(f"{score} is not {found['sequences_scores'][number]}")
            elif not {"min_new_tokens", "repetition_penalty"} & set(kwargs):
                best = steps.argmax(-1).tolist()
                if best != new:
                    raise AssertionError(f"{best} is not {new}")

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
        changes some arguments (`lang_ids` too), and the tokens must change with it.
        """
        overrides = overrides or {}
        model = load(self.root, checkpoint, **overrides)
        vocabulary, kinds = model.config.vocab_size, len(model.config.languages)
        width = max(lengths)
        for attempt in range(_TRIES):
            generator = torch.Generator().manual_seed(1000 * len(self.cases) + attempt)

            def draw(low: int, high: int, n: int, generator: object = generator) -> list[int]:
                return torch.randint(low, high, (n,), generator=generator).tolist()

            inputs: dict = {"input_ids": [draw(4, vocabulary, n) for n in lengths]}
            if langs == "rows":
                inputs["lang_ids"] = draw(0, kinds, len(lengths))
                if len(lengths) > 1 and len(set(inputs["lang_ids"])) == 1:
                    continue
            elif langs == "tokens":
                inputs["lang_ids"] = [draw(0, kinds, n) for n in lengths]
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
        self._agrees(model, inputs, kwargs, found)
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
        if own != found["sequences"]:
            case["reference"] = {"sequences": own}
        elif langs == "tokens" or (langs == "rows" and unlike):
            raise AssertionError(f"{name}: the reference is right")
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
        if options.pop("lang_ids", inputs) is None:
            given.pop("lang_ids")
        return self._alone(model, given, options)[0]["sequences"] != found["sequences"]

    def _reference(self, checkpoint: str, overrides: dict, case: dict) -> list:
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
    if "lang_ids" in inputs:
        result["lang_ids"] = [
            row[:1] * gap + row if isinstance(row, list) else row
            for gap, row in zip(gaps, inputs["lang_ids"], strict=True)
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


_NO_LANGS, _ONE_BEAM = {"lang_ids": None}, {"num_beams": 1}
_PER_TOKEN = "New tokens have the language of the last token of their prompt."


def _greedy(writer: Writer) -> None:
    def add(name: str, *args: object, **kwargs: object) -> None:
        writer.add(name, "greedy", *args, **kwargs)

    add("greedy_default", [5], _runs, langs="none", max_new_tokens=8, scores=True)
    add("greedy_default_ends", [4], _ends, langs="none", max_new_tokens=12)
    add(
        "greedy_default_overridden",
        [4, 4],
        _varied,
        langs="none",
        overrides={"default_language": "zh_CN"},
        max_new_tokens=8,
    )
    add("greedy_default_batch", [5, 5, 5], _some_end, langs="none", max_new_tokens=9)
    add("greedy_default_left_padding", [3, 6, 5], _varied, langs="none", max_new_tokens=9)
    add("greedy_language", [5], _runs, max_new_tokens=8, scores=True, unlike=(_NO_LANGS,))
    add("greedy_languages", [5, 5, 5], _some_end, max_new_tokens=9, unlike=(_NO_LANGS,))
    add("greedy_left_padding", [3, 6, 5], _some_end, max_new_tokens=9, unlike=(_NO_LANGS,))
    add("greedy_no_cache", [3, 6], _varied, max_new_tokens=8, use_cache=False, unlike=(_NO_LANGS,))
    add(
        "greedy_languages_per_token",
        [3, 5],
        _varied,
        langs="tokens",
        max_new_tokens=7,
        unlike=(_NO_LANGS,),
        notes=_PER_TOKEN,
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
        unlike=({"repetition_penalty": 1.0}, _NO_LANGS),
    )
    add("greedy_to_the_last_position", [4], _varied, max_length=35, min_new_tokens=31)
    add(
        "greedy_not_a_decoder",
        [3, 5],
        _varied,
        overrides={"is_decoder": False},
        max_new_tokens=6,
        unlike=(_NO_LANGS,),
        notes="Attention both ways: the whole text is read again at every step.",
    )
    add(
        "greedy_relative",
        [3, 5],
        checkpoint="relative_key_query",
        max_new_tokens=8,
        unlike=(_NO_LANGS,),
    )


def _beam(writer: Writer) -> None:
    def add(name: str, *args: object, **kwargs: object) -> None:
        writer.add(name, "beam", *args, **kwargs)

    both = (_ONE_BEAM, _NO_LANGS)
    add("beam_default", [5], langs="none", num_beams=3, max_new_tokens=7, unlike=(_ONE_BEAM,))
    add("beam", [5], num_beams=3, max_new_tokens=6, scores=True, unlike=both)
    add("beam_languages", [4, 4], _one_ends, num_beams=2, max_new_tokens=8, unlike=both)
    add("beam_left_padding", [3, 6, 5], num_beams=3, max_new_tokens=8, unlike=both)
    add("beam_no_cache", [3, 5], num_beams=2, max_new_tokens=6, use_cache=False, unlike=both)
    add(
        "beam_languages_per_token",
        [4, 6],
        langs="tokens",
        num_beams=2,
        max_new_tokens=7,
        unlike=both,
        notes=_PER_TOKEN,
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
    add(
        "beam_relative",
        [4, 5],
        checkpoint="relative_key_query",
        num_beams=2,
        max_new_tokens=6,
        unlike=both,
    )


def generation_cases(root: Path) -> dict:
    writer = Writer(root)
    _greedy(writer)
    _beam(writer)
    np.savez_compressed(root / "generation.npz", **writer.arrays)
    return {
        "about": {
            "arrays": "generation.npz",
            "padding": "left, with pad_token_id; languages of tokens there repeat the row's first",
        },
        "cases": writer.cases,
    }
