"""Checkpoints with every parameter random, written without any backend."""

import zlib

import numpy as np
import pytest
from families import FAMILIES

from xlmfam.common.checkpoints.models import save_parameters
from xlmfam.common.parameters import Kind, table_of


def random_parameters(config, head):
    """Return random values for every parameter: zeros and ones would hide swaps."""
    rng = np.random.default_rng(zlib.crc32(head.encode()))
    values = {}
    for name, parameter in table_of(config.model_type).expand(config, head).items():
        noise = 0.25 * rng.normal(size=parameter.shape)
        values[name] = np.float32(noise + (parameter.kind is Kind.NORM_SCALE))
    return values


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder and its values by (family, variant, head)."""
    made = {}

    def get(family, variant, head):
        key = (family, variant, head)
        if key not in made:
            config = FAMILIES[family].configs[variant]
            values = random_parameters(config, head)
            folder = tmp_path_factory.mktemp("-".join(key))
            save_parameters(
                folder,
                config,
                head,
                "canonical",
                lambda parameter: values[parameter.name],
                lambda parameter: np.dtype("float32"),
            )
            rows = table_of(config.model_type).expand(config, head)
            made[key] = folder, {n: v for n, v in values.items() if rows[n].tied_to is None}
        return made[key]

    return get
