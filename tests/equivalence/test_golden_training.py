"""Loss, every gradient and optimiser steps of the reference, in every backend."""

import pytest
from families import FAMILIES
from golden import assert_gradients, assert_optimiser_step, cases, load_case

CASES = [(family, case) for family in FAMILIES for case in cases(family, "training")]
STEPS = [(*pair, rule) for pair in CASES for rule in ("sgd", "adamw") if rule in pair[1]]


@pytest.mark.parametrize(
    ("family", "case"), CASES, ids=[f"{family}/{case['name']}" for family, case in CASES]
)
def test_gradients(backend, family, case):
    assert_gradients(backend, load_case(backend, family, case), family, case)


@pytest.mark.parametrize(
    ("family", "case", "rule"),
    STEPS,
    ids=[f"{name}/{case['name']}-{rule}" for name, case, rule in STEPS],
)
def test_optimiser_step(backend, family, case, rule):
    assert_optimiser_step(backend, load_case(backend, family, case), family, case, rule)
