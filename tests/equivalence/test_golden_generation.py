"""Every generation of the reference, token for token, in every backend."""

import pytest
from families import FAMILIES
from golden import LoadedOnce, assert_generation, generation

CASES = [(family, case) for family in FAMILIES for case in generation(family)]


@pytest.fixture(scope="module")
def load():
    """Loads a checkpoint once per backend and overrides."""
    return LoadedOnce("AutoModelForCausalLM")


@pytest.mark.parametrize(
    ("family", "case"), CASES, ids=[f"{family}/{case['name']}" for family, case in CASES]
)
def test_generation(backend, load, family, case):
    assert_generation(backend, load(backend, family, case), case)
