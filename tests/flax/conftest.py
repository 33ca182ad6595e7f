"""One tiny model, shared: what costs time here is compiling."""

import sys
from pathlib import Path

import numpy as np
import pytest

# For flax_helpers; at the end, since a folder called flax stands beside it.
sys.path.append(str(Path(__file__).parent))

pytest.importorskip("jax")
pytest.importorskip("flax")

import jax
from flax_helpers import make_config, randomise

from xlmfam.flax import XGLMForCausalLM


@pytest.fixture(scope="session")
def config():
    return make_config()


@pytest.fixture(scope="session")
def model(config):
    return randomise(XGLMForCausalLM(config))


@pytest.fixture(scope="session")
def cross_model():
    return randomise(XGLMForCausalLM(make_config(add_cross_attention=True)), seed=2)


@pytest.fixture(scope="session")
def run_jitted():
    """A call of a model under ``jax.jit`` (quicker than the same call op by op)."""

    def call(model, *args, flags=None, **kwargs):
        flags = flags or {}
        return jax.jit(lambda p, a, k: model(*a, params=p, **k, **flags))(
            model.params, args, kwargs
        )

    return call


@pytest.fixture
def ids():
    return np.random.default_rng(3).integers(3, 61, (3, 7))
