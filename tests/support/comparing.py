"""The assertions: nested results against nested results, the worst field named first.

A nested result is an array, or a mapping, list or tuple of nested results.
"""

from collections.abc import Mapping

import numpy as np


def flatten(nested, name=""):
    """Return ``{"hidden_states.0": array, ...}``; ``None`` has no entries."""
    if nested is None:
        return {}
    if isinstance(nested, Mapping):
        items = nested.items()
    elif isinstance(nested, list | tuple):
        items = enumerate(nested)
    else:
        return {name: np.asarray(nested)}
    flat = {}
    for key, value in items:
        flat |= flatten(value, f"{name}.{key}" if name else str(key))
    return flat


def error_of(actual, expected, scale=None):
    """Return the largest error relative to the largest expected value, or to ``scale``.

    Infinities must be equal and NaN is never right: both count as an infinite error. So does any
    difference between whole numbers.
    """
    if actual.shape != expected.shape:
        return np.inf
    if expected.dtype.kind in "iub":
        return 0.0 if (actual == expected).all() else np.inf
    if not expected.size:
        return 0.0
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    if not (np.isfinite(actual) == finite).all() or np.isnan(expected).any():
        return np.inf
    if not (actual[~finite] == expected[~finite]).all():
        return np.inf
    if not finite.any():
        return 0.0
    difference = np.abs(actual[finite] - expected[finite]).max()
    largest = scale if scale is not None else np.abs(expected[finite]).max()
    return 0.0 if difference == 0 else float(difference / max(largest, np.finfo(np.float32).tiny))


def errors_of(actual, expected, scales=None):
    """Return the error of every field of ``expected``; what is missing is infinitely wrong."""
    actual, expected = flatten(actual), flatten(expected)
    scales = scales or {}
    return {
        name: error_of(actual[name], value, scales.get(name)) if name in actual else np.inf
        for name, value in expected.items()
    }


def assert_close(actual, expected, tolerance, what="", *, exact_names=True, scales=None):
    """Assert that two nested results agree.

    Args:
        actual: What came.
        expected: What should come.
        tolerance: Largest error relative to each field's largest value.
        what: Named in the message.
        exact_names: Nothing may come that is not expected.
        scales: By field, what its error is relative to instead.
    """
    expected = flatten(expected)
    assert expected, f"{what}: nothing to compare"
    actual = flatten(actual)
    surplus = sorted(set(actual) - set(expected)) if exact_names else []
    assert not surplus, f"{what}: unexpected fields {surplus}"
    errors = errors_of(actual, expected, scales)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        raise AssertionError(_describe(what, wrong, actual, expected, tolerance, len(errors)))


def _describe(what, wrong, actual, expected, tolerance, count):
    worst = sorted(wrong, key=lambda name: -wrong[name])
    lines = [f"{what}: {len(wrong)} of {count} fields are off by more than {tolerance:g}"]
    for name in worst[:12]:
        came = actual[name].shape if name in actual else "nothing"
        lines.append(f"{name}: error {wrong[name]:.3g}, shape {came} for {expected[name].shape}")
    return "\n  ".join(lines)


def assert_same_bits(actual, expected, what=""):
    """Assert that two nested results are equal in names, shapes, dtypes and every bit."""
    actual, expected = flatten(actual), flatten(expected)
    assert expected, f"{what}: nothing to compare"
    assert sorted(actual) == sorted(expected), what
    different = [
        name
        for name, value in expected.items()
        if (actual[name].dtype, actual[name].shape) != (value.dtype, value.shape)
        or np.ascontiguousarray(actual[name]).tobytes() != np.ascontiguousarray(value).tobytes()
    ]
    assert not different, f"{what}: {different} differ"


def assert_same_tokens(actual, expected, what=""):
    """Assert that two arrays of ids are equal, row lengths included."""
    actual, expected = np.asarray(actual).tolist(), np.asarray(expected).tolist()
    assert actual == expected, f"{what}:\n  came     {actual}\n  expected {expected}"
