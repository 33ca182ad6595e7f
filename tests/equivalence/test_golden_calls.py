"""Every call of the reference, in every backend."""

import pytest
from families import FAMILIES
from golden import LoadedOnce, assert_call, cases

CASES = [(family, case) for family in FAMILIES for case in cases(family, "calls")]


@pytest.fixture(scope="module")
def load():
    """Loads a class of a checkpoint once per backend and overrides."""
    return LoadedOnce()


@pytest.mark.parametrize(
    ("family", "case"), CASES, ids=[f"{family}/{case['name']}" for family, case in CASES]
)
def test_call(backend, load, family, case):
    assert_call(backend, load(backend, family, case), family, case)
