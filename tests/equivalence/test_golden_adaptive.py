"""The adaptive softmax alone, in every backend, against torch's own."""

import numpy as np
import pytest
from comparing import assert_close, assert_same_tokens
from golden import arrays, cases, folder
from tolerances import LAYER

FAMILY, HEAD = "xlm", "XLMWithLMHeadModel"
CASE = cases(FAMILY, "adaptive")
STORED = arrays(folder(FAMILY) / CASE["arrays"])
STATES = STORED["states"]
FLAT = STATES.reshape(-1, STATES.shape[-1])
SCORES = STORED["log_probabilities"]


@pytest.fixture
def model(backend):
    return backend.load(HEAD, folder(FAMILY) / CASE["checkpoint"])


def test_settings(model):
    assert model.config.asm_cutoffs == CASE["cutoffs"]
    assert model.config.asm_div_value == CASE["div_value"]


def test_states_of_three_dimensions(backend, model):
    scores = backend.project(model, STATES)
    assert_close({"scores": scores}, {"scores": SCORES}, LAYER, str(backend))
    assert_same_tokens(scores.argmax(-1), STORED["best"], str(backend))
    np.testing.assert_allclose(np.exp(scores).sum(-1), 1.0, rtol=1e-5)


def test_flat_states(backend, model):
    scores = backend.project(model, FLAT)
    expected = SCORES.reshape(len(FLAT), -1)
    assert_close({"scores": scores}, {"scores": expected}, LAYER, str(backend))


def test_one_state(backend, model):
    scores = backend.project(model, FLAT[3])
    assert_close({"scores": scores}, {"scores": SCORES[0, 3]}, LAYER, str(backend))


def test_loss_and_gradients(backend, model):
    targets = STORED["targets"].flatten()
    loss, of_states, gradients = backend.projection_gradients(model, FLAT, targets)
    expected = {
        name.removeprefix("gradient."): value
        for name, value in STORED.items()
        if name.startswith("gradient.pred_layer")
    }
    assert_close({"loss": loss}, {"loss": STORED["loss"]}, LAYER, str(backend))
    assert_close(
        {"states": of_states.reshape(STATES.shape)},
        {"states": STORED["gradient.states"]},
        LAYER,
        str(backend),
    )
    assert_close(gradients, expected, LAYER, str(backend), exact_names=False)
    others = [v for name, v in gradients.items() if name not in expected]
    assert not any(np.any(value) for value in others)
