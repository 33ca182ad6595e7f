"""Logits processors and warpers of the reference on fixed scores and token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers.generation import logits_process

BATCH, LENGTH, VOCABULARY = 3, 9, 31

# name -> (options as generate() spells them, [(class, arguments)]) applied in the order given
CASES: dict[str, tuple[dict, list[tuple[str, dict]]]] = {}


def _case(name: str, options: dict, *pieces: tuple[str, dict]) -> None:
    CASES[name] = (options, list(pieces))


for value in (0.3, 0.7, 1.0, 2.5):
    _case(
        f"temperature_{value}",
        {"temperature": value},
        ("TemperatureLogitsWarper", {"temperature": value}),
    )
for value in (1, 5, 200):
    _case(f"top_k_{value}", {"top_k": value}, ("TopKLogitsWarper", {"top_k": value}))
_case(
    "top_k_keep",
    {"top_k": 2, "min_tokens_to_keep": 4},
    ("TopKLogitsWarper", {"top_k": 2, "min_tokens_to_keep": 4}),
)
_case(
    "top_k_filter",
    {"top_k": 3, "filter_value": -77.0},
    ("TopKLogitsWarper", {"top_k": 3, "filter_value": -77.0}),
)
for value in (0.0, 0.2, 0.5, 0.9, 0.999):
    _case(f"top_p_{value}", {"top_p": value}, ("TopPLogitsWarper", {"top_p": value}))
_case(
    "top_p_keep",
    {"top_p": 0.05, "min_tokens_to_keep": 3},
    ("TopPLogitsWarper", {"top_p": 0.05, "min_tokens_to_keep": 3}),
)
_case(
    "top_p_filter",
    {"top_p": 0.5, "filter_value": -9.0},
    ("TopPLogitsWarper", {"top_p": 0.5, "filter_value": -9.0}),
)
for value in (0.1, 0.5, 0.95):
    _case(f"typical_p_{value}", {"typical_p": value}, ("TypicalLogitsWarper", {"mass": value}))
_case(
    "typical_p_keep",
    {"typical_p": 0.05, "min_tokens_to_keep": 4},
    ("TypicalLogitsWarper", {"mass": 0.05, "min_tokens_to_keep": 4}),
)
_case(
    "warpers",
    {"temperature": 0.6, "top_k": 12, "top_p": 0.8},
    ("TemperatureLogitsWarper", {"temperature": 0.6}),
    ("TopKLogitsWarper", {"top_k": 12}),
    ("TopPLogitsWarper", {"top_p": 0.8}),
)
_case(
    "warpers_typical",
    {"temperature": 1.4, "top_k": 20, "top_p": 0.95, "typical_p": 0.6},
    ("TemperatureLogitsWarper", {"temperature": 1.4}),
    ("TopKLogitsWarper", {"top_k": 20}),
    ("TopPLogitsWarper", {"top_p": 0.95}),
    ("TypicalLogitsWarper", {"mass": 0.6}),
)
for value in (0.5, 1.3, 4.0):
    _case(
        f"repetition_penalty_{value}",
        {"repetition_penalty": value},
        ("RepetitionPenaltyLogitsProcessor", {"penalty": value}),
    )
for value in (1, 2, 3, 4, 12):
    _case(
        f"no_repeat_ngram_{value}",
        {"no_repeat_ngram_size": value},
        ("NoRepeatNGramLogitsProcessor", {"ngram_size": value}),
    )
for name, words in (
    ("single", [[4], [7]]),
    ("several", [[5, 9], [4, 6, 8], [3]]),
    ("overlapping", [[6, 5], [4, 6, 5], [6]]),
    ("longer_than_text", [[1] * 12, [11, 12]]),
):
    for eos in (2, [4, 3]):
        _case(
            f"bad_words_{name}_{'one' if eos == 2 else 'two'}_eos",
            {"bad_words_ids": words, "eos_token_id": eos},
            ("NoBadWordsLogitsProcessor", {"bad_words_ids": words, "eos_token_id": eos}),
        )
for value in (8, 9, 10):
    _case(
        f"min_length_{value}",
        {"min_length": value, "eos_token_id": 2},
        ("MinLengthLogitsProcessor", {"min_length": value, "eos_token_id": 2}),
    )
_case(
    "min_length_eos",
    {"min_length": 15, "eos_token_id": [2, 7]},
    ("MinLengthLogitsProcessor", {"min_length": 15, "eos_token_id": [2, 7]}),
)
for value in (2, 3, 4):
    _case(
        f"min_new_tokens_{value}",
        {"min_new_tokens": value, "prompt_length": 6, "eos_token_id": [2, 7]},
        (
            "MinNewTokensLengthLogitsProcessor",
            {"prompt_length_to_skip": 6, "min_new_tokens": value, "eos_token_id": [2, 7]},
        ),
    )
_case(
    "processors",
    {
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[5, 9], [3]],
        "min_new_tokens": 5,
        "prompt_length": 6,
        "eos_token_id": 2,
    },
    ("RepetitionPenaltyLogitsProcessor", {"penalty": 1.5}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 2}),
    ("NoBadWordsLogitsProcessor", {"bad_words_ids": [[5, 9], [3]], "eos_token_id": 2}),
    (
        "MinNewTokensLengthLogitsProcessor",
        {"prompt_length_to_skip": 6, "min_new_tokens": 5, "eos_token_id": 2},
    ),
)


def processor_cases(root: Path) -> dict:
    generator = torch.Generator().manual_seed(300)
    scores = 2.5 * torch.randn(BATCH, VOCABULARY, generator=generator)
    ids = torch.tensor(
        [[4, 5, 9, 4, 5, 9, 4, 6, 5], [7, 7, 3, 7, 7, 3, 8, 7, 7], [1, 1, 12, 4, 6, 11, 4, 4, 6]]
    )
    arrays = {"scores": scores.numpy(), "input_ids": ids.numpy()}
    rows = []
    for name, (options, pieces) in CASES.items():
        chain = logits_process.LogitsProcessorList(
            getattr(logits_process, cls)(**given) for cls, given in pieces
        )
        arrays[f"expected.{name}"] = chain(ids, scores.clone()).numpy()
        rows.append(
            {
                "name": name,
                "options": options,
                "pieces": [cls for cls, _ in pieces],
                "expected": f"expected.{name}",
            }
        )
    np.savez_compressed(root / "processors.npz", **arrays)
    return {
        "about": "Each case applies its pieces, in order, to `scores` (batch, vocabulary) "
        "with the tokens so far in `input_ids` (batch, length). Forbidden tokens are -inf, "
        "or `filter_value` where one is given.",
        "arrays": "processors.npz",
        "scores": "scores",
        "input_ids": "input_ids",
        "cases": rows,
    }
