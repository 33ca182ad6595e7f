"""Each logits processor against transformers 4.37.2, in a buffer wider than its tokens."""

import numpy as np
import pytest
import tensorflow as tf
from comparing import assert_close
from golden import arrays, cases, folder, named
from tolerances import LAYER

from xlmfam import GenerationConfig
from xlmfam.common.generation import plan_generation
from xlmfam.tf import processors

SECTION = cases("xglm", "processors")
STORED = arrays(folder("xglm") / SECTION["arrays"])
SCORES = tf.constant(STORED[SECTION["scores"]])
IDS = STORED[SECTION["input_ids"]].astype(np.int32)
OFFSET, SPARE = 4, 3


def buffer():
    """The tokens with others before and behind: none of those may be seen."""
    before = np.tile(IDS[:, -1:], (1, OFFSET))
    behind = np.tile(IDS[:, :1], (1, SPARE))
    return tf.constant(np.concatenate([before, IDS, behind], 1))


def run(options):
    options = dict(options)
    options.pop("filter_value", None)  # xlmfam forbids with -inf and nothing else
    prompt = options.pop("prompt_length", IDS.shape[1])
    least = options.pop("min_tokens_to_keep", 1)
    if least > 1 or options.get("top_p") == 0.0:
        ((name, value),) = options.items()
        if name == "top_k":
            return processors.keep_top_k(SCORES, max(value, least))
        warper = {"top_p": processors.keep_top_p, "typical_p": processors.keep_typical}[name]
        return warper(SCORES, value, least)
    options = {"max_length": 40, "top_k": 0, **options}
    if IDS.shape[1] != prompt:
        options["max_new_tokens"] = 40 - prompt
    plan = plan_generation(GenerationConfig(**options), prompt, SCORES.shape[1])
    places = (0, plan.prompt_length, plan.max_length, plan.min_length)
    bounds = processors.Bounds(*(tf.constant(OFFSET + place) for place in places))
    length = tf.constant(OFFSET + IDS.shape[1])
    scores = processors.process(plan, buffer(), SCORES, length, bounds)
    return processors.warp(plan, scores)


@pytest.mark.parametrize("case", **named(SECTION["cases"]))
def test_processor(case):
    expected = STORED[case["expected"]]
    if "filter_value" in case["options"]:
        expected = np.where(expected == case["options"]["filter_value"], -np.inf, expected)
    assert_close(
        {"scores": run(case["options"]).numpy()}, {"scores": expected}, LAYER, case["name"]
    )


def test_a_forbidden_end_is_not_hurried():
    options = {"eos_token_id": 2, "min_length": 30, "exponential_decay_length_penalty": (0, 1.5)}
    came = run({**options, "prompt_length": IDS.shape[1] - 1}).numpy()
    assert np.isneginf(came[:, 2]).all()
    assert not np.isnan(came).any()
