"""Positions, argument checks, logging, progress bars, errors."""

import io
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from xlmfam.common import logging as xlmfam_logging
from xlmfam.common.activations import ACTIVATIONS
from xlmfam.common.checks import check_inputs, check_shape, check_token_range
from xlmfam.common.errors import (
    CheckpointError,
    ConfigError,
    MissingPackageError,
    XlmfamError,
)
from xlmfam.common.positions import halves_frequencies


def shaped(*shape):
    return SimpleNamespace(shape=shape)


def test_frequencies_fall_from_one_to_a_ten_thousandth():
    frequencies = halves_frequencies(24)
    assert frequencies.shape == (12,)
    assert frequencies.dtype == np.float32
    assert frequencies[0] == 1.0
    np.testing.assert_allclose(frequencies[-1], 1e-4, rtol=1e-5)
    ratios = frequencies[1:] / frequencies[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)


@pytest.mark.parametrize("width", [2, 3])
def test_frequencies_of_small_and_odd_widths(width):
    assert halves_frequencies(width).tolist() == [1.0]


def test_frequencies_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        halves_frequencies(24)[0] = 2


def test_exactly_one_input():
    check_inputs(shaped(2, 3), None, 8)
    check_inputs(None, shaped(2, 3, 8), 8)
    with pytest.raises(XlmfamError, match="neither came"):
        check_inputs(None, None, 8)
    with pytest.raises(XlmfamError, match="both came"):
        check_inputs(shaped(2, 3), shaped(2, 3, 8), 8)
    with pytest.raises(XlmfamError, match=r"\(batch, sequence\), got \(3,\)"):
        check_inputs(shaped(3), None, 8)
    with pytest.raises(XlmfamError, match=r"\(batch, sequence, 8\), got \(2, 3, 7\)"):
        check_inputs(None, shaped(2, 3, 7), 8)


def test_shapes():
    check_shape("x", None, (2, 3))
    check_shape("x", shaped(2, 3), (4,), (2, None))
    check_shape("x", shaped(None, 3), (2, 3))
    with pytest.raises(XlmfamError, match=r"x must have shape \(2, \*\) or \(4,\), got \(3, 3\)"):
        check_shape("x", shaped(3, 3), (2, None), (4,))


def test_token_range():
    check_token_range("x", 0, 9, 10)
    with pytest.raises(XlmfamError, match="x holds 10, outside the vocabulary of 10 ids"):
        check_token_range("x", 0, 10, 10)
    with pytest.raises(XlmfamError, match="x holds -1"):
        check_token_range("x", -1, 3, 10)


def test_errors_are_value_errors():
    for error in (XlmfamError, ConfigError, CheckpointError, MissingPackageError):
        assert issubclass(error, ValueError)
    assert issubclass(MissingPackageError, ImportError)
    assert "pip install torch" in str(MissingPackageError("torch", "this"))


def test_loggers_stand_below_the_package_s(caplog):
    with caplog.at_level(logging.INFO, logger="xlmfam"):
        xlmfam_logging.get_logger("xlmfam.somewhere").info("hello")
    assert caplog.messages == ["hello"]


def test_verbosity():
    root = xlmfam_logging.get_logger()
    before = root.level
    try:
        xlmfam_logging.set_verbosity("ERROR")
        assert not xlmfam_logging.get_logger("xlmfam.x").isEnabledFor(logging.WARNING)
    finally:
        root.setLevel(before)


@pytest.mark.parametrize(("terminal", "shown"), [(False, False), (True, True)])
def test_a_bar_only_where_somebody_looks(monkeypatch, terminal, shown):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(xlmfam_logging.progress([1, 2, 3], "Loading")) == [1, 2, 3]
    assert ("Loading" in stream.getvalue()) == shown


def test_a_bar_can_be_switched_off(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(xlmfam_logging.progress(iter("ab"), "x", total=2, enabled=False)) == ["a", "b"]
    assert not stream.getvalue()


@pytest.mark.parametrize("name", ["pt", "tf", "flax"])
def test_every_backend_has_every_activation(name):
    from backends import get_backend

    get_backend(name)
    layers = pytest.importorskip(f"xlmfam.{name}.layers")
    assert set(layers.ACTIVATION_FUNCTIONS) == set(ACTIVATIONS)
