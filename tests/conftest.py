"""Settings that must stand before any framework is imported, and the fixtures for backends."""

import contextlib
import gc
import os
import sys

import pytest

# Two workers on two cores: one thread each. Alone, a run may use what there is.
_THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else str(os.cpu_count() or 1)
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, _THREADS)
for _name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(_name, _THREADS)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Torch before TensorFlow: the other way round, their runtimes collide in one process.
with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(int(_THREADS))

from backends import BACKENDS, get_backend  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples in every run; --hypothesis-profile=search looks for more.
settings.register_profile("same", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("same")


def pytest_configure(config):
    """Models compiled by one test serve the others of its file, so files stay whole."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadfile"


def pytest_collection_finish():
    """Thousands of tests and three frameworks stay to the end; collectors need not look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_what_was_compiled():
    """Compiled functions of thousands of tests are more memory maps than a process may have."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request):
    """Every backend in turn, imported when first used; skipped where it is not installed."""
    return get_backend(request.param)


@pytest.fixture(scope="session")
def pt():
    """The PyTorch backend."""
    return get_backend("pt")


@pytest.fixture(scope="session")
def tf():
    """The TensorFlow backend."""
    return get_backend("tf")


@pytest.fixture(scope="session")
def flax():
    """The Flax backend."""
    return get_backend("flax")
