"""Helpers for the tests of file formats."""

import ml_dtypes
import numpy as np
import pytest

from xlmfam.common.checkpoints.source import TensorSpec


def _arrays(names):
    """An array for each name: every dtype, a scalar, an empty one, one that is not row-major."""
    rng = np.random.default_rng(0)
    dtypes = [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.float64, np.uint8]
    arrays = [rng.normal(size=(3, 5 + i)).astype(d) for i, d in enumerate(dtypes)]
    arrays += [np.array(7, np.int64), np.zeros((0, 4), np.float32)]
    arrays += [np.array(1.5, ml_dtypes.bfloat16), np.zeros((2, 0), ml_dtypes.bfloat16)]
    arrays += [np.arange(6, dtype=np.float32).reshape(2, 3).T]
    arrays += [np.array([np.inf, np.nan, -0.0, 1e-40], np.float32).astype(ml_dtypes.bfloat16)]
    assert len(names) == len(arrays)
    return dict(zip(names, arrays, strict=True))


class Checks:
    """What the tests of every format ask."""

    arrays = staticmethod(_arrays)

    @staticmethod
    def specs(arrays):
        return {name: TensorSpec(a.shape, a.dtype) for name, a in arrays.items()}

    @staticmethod
    def assert_same(came, expected):
        assert came.keys() == expected.keys()
        for name, array in expected.items():
            other = np.asarray(came[name])
            assert (other.shape, other.dtype) == (array.shape, array.dtype), name
            assert other.tobytes() == array.tobytes(), name

    @classmethod
    def assert_source_is(cls, source, expected):
        assert source.specs() == cls.specs(expected)
        cls.assert_same({name: source.read(name) for name in source.specs()}, expected)


@pytest.fixture
def checks():
    return Checks
