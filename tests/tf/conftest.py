from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(__file__))

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from tf_models import randomised, tiny_config  # noqa: E402

from xlmfam.tf import XGLMForCausalLM  # noqa: E402


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
