"""Tiny models for the tests here."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from xlmfam import tf as xlm
from xlmfam.tf import XGLMConfig, XLMConfig, XmodConfig


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


XLM_SIZES = {
    "vocab_size": 53,
    "emb_dim": 24,
    "n_layers": 2,
    "n_heads": 4,
    "n_langs": 3,
    "lang2id": {"de": 0, "en": 1, "fr": 2},
    "max_position_embeddings": 37,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "summary_first_dropout": 0.0,
}


def build_xlm(class_name="XLMWithLMHeadModel", seed=0, dtype=None, **options):
    """Return a tiny model of a class of XLM, whose words and languages make a difference."""
    config = XLMConfig(**{**XLM_SIZES, **options})
    model = randomised(getattr(xlm, class_name)(config, dtype=dtype), seed)
    for variable in model.trainable_variables:
        if variable.name == "gamma":
            variable.assign_add(tf.ones_like(variable))
        elif variable.name == "embeddings":
            variable.assign(2 * variable)
    return model


XMOD_SIZES = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 37,
    "type_vocab_size": 3,
    "languages": ["en_XX", "de_DE", "sw_KE"],
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def build_xmod(class_name="XmodForMaskedLM", seed=0, dtype=None, **options):
    """Return a tiny model of a class of X-MOD."""
    config = XmodConfig(**{**XMOD_SIZES, **options})
    return randomised(getattr(xlm, class_name)(config, dtype=dtype), seed)
