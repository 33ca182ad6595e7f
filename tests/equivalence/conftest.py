"""Checkpoints with every parameter random, written without any backend."""

import sys
import zlib

import numpy as np
import pytest
from families import FAMILIES

from xlmfam.common.checkpoints import models as loading
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


# ---- mistakes made on purpose ----------------------------------------------------------------


@pytest.fixture
def no_traces(backend):
    """What was compiled before a mistake must not serve after it."""
    clear = backend.jax.clear_caches if backend.name == "flax" else lambda: None
    clear()
    yield
    clear()


@pytest.fixture
def replace(backend, monkeypatch):
    """Wraps a function wherever the backend's modules have it; ``head`` imports them."""

    def wrap(name, wrapper, head="XGLMForCausalLM"):
        backend.cls(head)
        prefix = f"xlmfam.{backend.name}."
        modules = [m for n, m in sys.modules.items() if n.startswith(prefix)]
        found = [module for module in modules if name in vars(module)]
        assert found, f"{backend} has no {name}"
        for module in found:
            original = getattr(module, name)
            monkeypatch.setattr(module, name, wrapper(original))

    return wrap


@pytest.fixture
def read_other(monkeypatch):
    """Lets a parameter be read from where another one lies."""
    read = loading.ParameterReader.read

    def rename(one, other):
        def mistaken(reader, name):
            swapped = name.replace(one, "\0").replace(other, one).replace("\0", other)
            return read(reader, swapped)

        monkeypatch.setattr(loading.ParameterReader, "read", mistaken)

    return rename
