"""Every generation of the reference, token for token, in every backend."""

import pytest
from families import FAMILIES
from golden import assert_generation, folder, generation

CASES = [(family, case) for family in FAMILIES for case in generation(family)]


@pytest.fixture(scope="module")
def load():
    """Load a checkpoint once per backend."""
    loaded = {}

    def get(backend, family, case):
        key = (backend.name, family, case["checkpoint"])
        if key not in loaded:
            path = folder(family) / case["checkpoint"]
            model = backend.cls("AutoModelForCausalLM").from_pretrained(path)
            loaded[key] = model
        return loaded[key]

    return get


@pytest.mark.parametrize(("family", "case"), CASES, ids=[case["name"] for _, case in CASES])
def test_generation(backend, load, family, case):
    assert_generation(backend, load(backend, family, case), case)
