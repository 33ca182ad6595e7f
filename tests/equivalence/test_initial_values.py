"""What a model begins with is what its table states, in all backends."""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS, get_backend

from xlmfam import TransfoXLConfig
from xlmfam.common.parameters import table_of

SIZES = {
    "vocab_size": 530,
    "cutoffs": [110, 280],
    "d_model": 36,
    "d_embed": 24,
    "n_head": 3,
    "d_head": 10,
    "d_inner": 46,
    "div_val": 2,
    "n_layer": 1,
    "init_std": 0.3,
    "init_range": 0.07,
    "proj_init_std": 0.9,
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_transformer_xl(name, init):
    config = TransfoXLConfig(**SIZES, init=init)
    rows = table_of("transfo-xl").expand(config, "TransfoXLLMHeadModel")
    backend = get_backend(name)
    model = backend.build("TransfoXLLMHeadModel", config)
    seen = set()
    for key, value in backend.parameters(model).items():
        row = rows[key]
        seen.add(row.init)
        if row.init == "uniform":
            assert np.abs(value).max() <= 0.07
            if value.size > 200:
                np.testing.assert_allclose(value.std(), 0.07 / np.sqrt(3), rtol=0.15)
        elif row.init == "normal" and value.size > 200:
            expected = 0.9 if "proj" in key else 0.3
            np.testing.assert_allclose(value.std(), expected, rtol=0.15)
            assert np.abs(value).max() > 2 * expected
    # The projections have a deviation of their own.
    assert seen == {"normal", "ones", "zeros"} | ({"uniform"} if init == "uniform" else set())
