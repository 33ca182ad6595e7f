"""Loss, every gradient and optimiser steps of the reference, in every backend."""

import pytest
from families import FAMILIES
from golden import assert_gradients, assert_optimiser_step, cases, folder

CASES = [(family, case) for family in FAMILIES for case in cases(family, "training")]
STEPS = [(*pair, rule) for pair in CASES for rule in ("sgd", "adamw") if rule in pair[1]]


def load(backend, family, case):
    return backend.load(case["class"], folder(family) / case["checkpoint"])


@pytest.mark.parametrize(("family", "case"), CASES, ids=[case["name"] for _, case in CASES])
def test_gradients(backend, family, case):
    assert_gradients(backend, load(backend, family, case), family, case)


@pytest.mark.parametrize(
    ("family", "case", "rule"), STEPS, ids=[f"{case['name']}-{rule}" for _, case, rule in STEPS]
)
def test_optimiser_step(backend, family, case, rule):
    assert_optimiser_step(backend, load(backend, family, case), family, case, rule)
