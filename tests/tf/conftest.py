from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from xlmfam.tf import XGLMConfig, XGLMForCausalLM  # noqa: E402


def tiny_config(**overrides):
    sizes = {
        "vocab_size": 37,
        "d_model": 12,
        "ffn_dim": 20,
        "num_layers": 2,
        "attention_heads": 3,
        "max_position_embeddings": 32,
        "init_std": 0.3,
    }
    return XGLMConfig(**{**sizes, **overrides})


def randomised(model, seed=0):
    """Give every variable values that no other has: initial ones and zeros hide mistakes."""
    generator = np.random.RandomState(seed)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0, 0.3, variable.shape).astype("float32"))
    return model


@pytest.fixture(scope="session")
def shared_model():
    """A model that no test may change."""
    return randomised(XGLMForCausalLM(tiny_config()))


@pytest.fixture
def model():
    return randomised(XGLMForCausalLM(tiny_config(dropout=0.0, attention_dropout=0.0)))


@pytest.fixture(scope="session")
def batch():
    """Two rows of seven tokens, the first padded on the left."""
    ids = np.random.RandomState(1).randint(4, 37, (2, 7))
    ids[0, :3] = 1
    return {"input_ids": ids, "attention_mask": (ids != 1).astype("int32")}


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)
