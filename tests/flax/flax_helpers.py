"""Helpers of the Flax tests."""

import jax
import jax.numpy as jnp
import numpy as np

from xlmfam.flax import XGLMConfig, XLMConfig

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


def make_xlm(class_name="XLMWithLMHeadModel", seed=1, **options):
    """An XLM model in which every parameter has values of its own."""
    import xlmfam.flax

    config = XLMConfig(**{**XLM_SIZES, **options})
    return randomise(getattr(xlmfam.flax, class_name)(config), seed)


def close(a, b, tolerance=2e-5):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()))


def far(a, b):
    """Whether two arrays differ by more than rounding."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 1e-2
