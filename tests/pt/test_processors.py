"""Each logits processor against transformers 4.37.2."""

import numpy as np
import pytest
import torch
from comparing import assert_close
from golden import arrays, cases, folder, named
from tolerances import LAYER

from xlmfam import GenerationConfig
from xlmfam.common.generation import plan_generation
from xlmfam.pt import processors

SECTION = cases("xglm", "processors")
STORED = arrays(folder("xglm") / SECTION["arrays"])
SCORES = torch.from_numpy(STORED[SECTION["scores"]])
IDS = torch.from_numpy(STORED[SECTION["input_ids"]])
WARPERS = {"temperature", "top_k", "top_p", "typical_p"}


def run(options):
    options = dict(options)
    options.pop("filter_value", None)  # xlmfam forbids with -inf and nothing else
    prompt = options.pop("prompt_length", IDS.shape[1])
    least = options.pop("min_tokens_to_keep", 1)
    if least > 1 or options.get("top_p") == 0.0:
        return one_warper(options, least)
    options = {"max_length": 40, "top_k": 0, **options}
    if IDS.shape[1] != prompt:
        options["max_new_tokens"] = 40 - prompt
    plan = plan_generation(GenerationConfig(**options), prompt, SCORES.shape[1])
    return processors.warp(plan, processors.process(plan, IDS, SCORES))


def one_warper(options, least):
    ((name, value),) = options.items()
    if name == "top_k":
        return processors.keep_top_k(SCORES, max(value, least))
    function = {"top_p": processors.keep_top_p, "typical_p": processors.keep_typical}[name]
    return function(SCORES, value, least)


@pytest.mark.parametrize("case", **named(SECTION["cases"]))
def test_processor(case):
    before = SCORES.clone(), IDS.clone()
    came = run(case["options"]).numpy()
    expected = STORED[case["expected"]]
    if "filter_value" in case["options"]:
        expected = np.where(expected == case["options"]["filter_value"], -np.inf, expected)
    assert_close({"scores": came}, {"scores": expected}, LAYER, case["name"])
    assert torch.equal(before[0], SCORES)
    assert torch.equal(before[1], IDS)


def test_every_case_that_changes_something_is_seen_to():
    changed = [
        case["name"]
        for case in SECTION["cases"]
        if not np.array_equal(STORED[case["expected"]], SCORES.numpy())
    ]
    assert len(changed) > len(SECTION["cases"]) * 0.6


def test_a_forbidden_end_is_not_hurried():
    options = {"eos_token_id": 2, "min_length": 30, "exponential_decay_length_penalty": (0, 1.5)}
    came = run({**options, "prompt_length": IDS.shape[1] - 1}).numpy()
    assert np.isneginf(came[:, 2]).all()
    assert not np.isnan(came).any()
