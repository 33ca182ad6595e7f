"""Tiny models for the tests here."""

from __future__ import annotations

import numpy as np

from xlmfam.tf import XGLMConfig


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
