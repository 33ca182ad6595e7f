"""Helpers of the Flax tests."""

import jax
import jax.numpy as jnp
import numpy as np

from xlmfam.flax import XGLMConfig

SIZES = {
    "vocab_size": 61,
    "d_model": 24,
    "ffn_dim": 40,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": 37,
}


def make_config(**kwargs):
    return XGLMConfig(**{**SIZES, **kwargs})


def randomise(model, seed=1):
    """Give every parameter values of its own: zeros and ones hide mistakes."""
    rng = np.random.default_rng(seed)
    model.params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape) + (x.ndim == 1), x.dtype), model.params
    )
    return model
