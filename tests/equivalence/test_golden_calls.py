"""Every call of the reference, in every backend."""

import pytest
from families import FAMILIES
from golden import assert_call, cases, folder

CASES = [(family, case) for family in FAMILIES for case in cases(family, "calls")]


@pytest.fixture(scope="module")
def load():
    """Load a class of a checkpoint once per backend."""
    loaded = {}

    def get(backend, family, case):
        key = (backend.name, family, case["class"], case["checkpoint"])
        if key not in loaded:
            loaded[key] = backend.load(case["class"], folder(family) / case["checkpoint"])
        return loaded[key]

    return get


@pytest.mark.parametrize(("family", "case"), CASES, ids=[case["name"] for _, case in CASES])
def test_call(backend, load, family, case):
    assert_call(backend, load(backend, family, case), family, case)
