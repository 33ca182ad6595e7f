"""Verifying: it agrees where backends agree, and sees what is broken."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config, save

from xlmfam.common.errors import CheckpointError, MissingPackageError, XlmfamError
from xlmfam.conversion import runners, verify
from xlmfam.conversion.examples import example_inputs
from xlmfam.conversion.runners import Observation
from xlmfam.conversion.verify import compare, difference

BACKENDS = runners.installed_backends()
needs_two = pytest.mark.skipif(len(BACKENDS) < 2, reason="needs two frameworks")
PAIR = [*BACKENDS[:1], *BACKENDS[-1:]]


@needs_two
@pytest.mark.parametrize("head", ["XGLMForCausalLM", "XGLMModel"])
def test_all_backends_agree(tmp_path, head):
    verification = verify(make(tmp_path / "model", head=head))
    assert verification.ok, str(verification)
    assert list(verification.backends) == list(BACKENDS)
    assert verification.failures == {}
    assert len(verification.pairs) == len(BACKENDS) * (len(BACKENDS) - 1) // 2
    fields = ["embeddings", "layer 0", "layer 1", "loss"]
    assert [f for f in verification.fields if f in fields] == fields
    assert ("logits" in verification.fields) == (head == "XGLMForCausalLM")
    assert {"gradients, layer 0", "gradients, layer 1", "gradients, other"} <= {
        *verification.fields
    }
    assert 0 < verification.largest < verification.tolerance
    assert "the backends agree" in str(verification)


@needs_two
def test_gradients_of_every_parameter_are_compared(tmp_path):
    folder = make(tmp_path / "model")
    inputs = example_inputs(make_config(), "XGLMForCausalLM")
    for backend in BACKENDS:
        gradients = runners.observe(backend, folder, inputs).gradients
        assert gradients.keys() == make_arrays(make_config()).keys()
        assert all(np.abs(g).max() > 0 for g in gradients.values())
        assert runners.observe(backend, folder, inputs, gradients=False).gradients == {}


def swapped(tmp_path, first="q_proj", second="k_proj"):
    """A sound checkpoint, and a copy in which two projections of one layer are swapped."""
    arrays = make_arrays(make_config())
    sound = save(tmp_path / "sound", arrays, make_config())
    name = "model.layers.1.self_attn.{}.weight"
    one, other = name.format(first), name.format(second)
    arrays = {**arrays, one: arrays[other], other: arrays[one]}
    return sound, save(tmp_path / "broken", arrays, make_config(), format="flax")


@needs_two
def test_swapped_projections_are_seen(tmp_path):
    sound, broken = swapped(tmp_path)
    verification = verify({PAIR[0]: sound, PAIR[1]: broken})
    assert not verification.ok
    wrong = {comparison.field for comparison in verification.differing()}
    assert {"layer 1", "logits", "loss", "gradients, layer 1"} <= wrong
    assert not {"embeddings", "layer 0"} & wrong
    assert "NOT VERIFIED" in str(verification)
    assert "!" in verification.table()


@needs_two
def test_a_loader_that_swaps_is_seen(tmp_path, monkeypatch):
    """The mutation is in the reader of one format: a checkpoint in it loads, and is wrong."""
    from xlmfam.conversion.formats import flax_msgpack

    sound, _ = swapped(tmp_path)
    copy = save(tmp_path / "copy", make_arrays(make_config()), make_config(), format="flax")
    assert verify({PAIR[0]: sound, PAIR[1]: copy}, gradients=False).ok
    source = type(flax_msgpack.open_file(copy / "flax_model.msgpack"))
    read = source.read
    swap = {"q_proj": "k_proj", "k_proj": "q_proj"}

    def wrong(self, name):
        parts = [swap.get(part, part) for part in name.split("/")]
        return read(self, "/".join(parts))

    monkeypatch.setattr(source, "read", wrong)
    assert not verify({PAIR[0]: sound, PAIR[1]: copy}, gradients=False).ok


@needs_two
def test_nan_weights_fail(tmp_path):
    arrays = make_arrays(make_config())
    arrays["model.layers.0.fc1.weight"][3, 2] = np.nan
    verification = verify(save(tmp_path / "model", arrays, make_config()), PAIR)
    assert not verification.ok
    assert math.isnan(verification.largest)
    assert all(math.isnan(c.difference) for c in verification.differing())


@needs_two
def test_a_backend_that_cannot_load_is_a_failure(tmp_path, monkeypatch):
    observe = runners.observe

    def failing(backend, *args, **kwargs):
        if backend == PAIR[1]:
            raise XlmfamError("no room")
        return observe(backend, *args, **kwargs)

    # The package has a function of that name, so a dotted path would end there.
    monkeypatch.setattr(sys.modules["xlmfam.conversion.verify"], "observe", failing)
    verification = verify(make(tmp_path / "model"), PAIR)
    assert not verification.ok
    assert verification.failures == {PAIR[1]: "no room"}
    assert f"{PAIR[1]} could not run it: no room" in str(verification)


def test_needs_two_backends_that_exist(tmp_path, monkeypatch):
    folder = make(tmp_path / "model")
    with pytest.raises(XlmfamError, match="nothing to compare"):
        verify(folder, BACKENDS[:1])
    with pytest.raises(XlmfamError, match="'jaxx'"):
        verify(folder, ["pt", "jaxx"])
    with pytest.raises(XlmfamError, match="tolerance"):
        verify(folder, tolerance=0)
    monkeypatch.setitem(runners.PACKAGES, "tf", "no_such_package")
    with pytest.raises(MissingPackageError, match=r"pip install \"xlmfam\[tf\]\""):
        verify(folder, ["pt", "tf"])
    assert "tf" not in runners.installed_backends()


@needs_two
def test_what_does_not_fit_is_said_before_anything_is_run(tmp_path):
    folder = make(tmp_path / "model")
    change_json(folder / "config.json", num_layers=3)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.2"):
        verify(folder)


def test_example_has_both_paddings_and_ignored_labels():
    inputs = example_inputs(make_config(), "XGLMForCausalLM", seed=3)
    mask = inputs["attention_mask"]
    assert mask[1, 0] == 0
    assert mask[1, -1] == 1
    assert mask[2, 0] == 1
    assert mask[2, -1] == 0
    assert (inputs["labels"][mask == 0] == -100).all()
    assert (inputs["labels"][0] == -100).sum() == 1
    assert (inputs["input_ids"][mask == 0] == 1).all()
    assert inputs["input_ids"].max() < 61
    others = example_inputs(make_config(), "XGLMForCausalLM", 4)
    assert not np.array_equal(inputs["input_ids"], others["input_ids"])


def test_difference():
    ones = np.ones((2, 3), np.float32)
    assert difference(ones, ones) == 0
    assert difference(ones * 4, ones * 3) == 0.25
    assert difference(ones, -ones) == 2.0
    assert difference(ones, ones * 0, scale=10) == pytest.approx(0.1)
    for other in (None, ones[:1], ones * np.nan, ones * np.inf):
        assert math.isnan(difference(ones, other))
    assert math.isnan(difference(ones * np.nan, ones * np.nan))
    assert difference(ones * 0, ones * 0) == 0


LAYERS = {"a.0.b": 0, "c": None}
MASK = np.ones((1, 2), bool)


def observation(backend, values, gradients=None, layers=2):
    states = {f"layer {index}": values for index in range(layers)}
    return Observation(backend, states, {"logits": values}, 1.0, gradients or {})


def test_missing_gradients_layers_and_predictions_are_differences():
    ones = np.ones((1, 2, 3), np.float32)
    one = observation("pt", ones, {"a.0.b": ones, "c": ones})
    other = observation("tf", ones, {"a.0.b": ones}, layers=1)
    other.predictions = {}
    for pair in ((one, other), (other, one)):
        found = {c.field: c.difference for c in compare(*pair, [MASK], LAYERS)}
        assert [name for name, value in found.items() if math.isnan(value)] == [
            "layer 1",
            "logits",
            "gradients, other",
        ]
        assert found["gradients, layer 0"] == 0


def test_padding_is_not_compared():
    ones, mask = np.ones((1, 2, 3), np.float32), np.array([[False, True]])
    changed = ones.copy()
    changed[0, 0] = 7
    one, other = observation("pt", ones), observation("tf", changed)
    assert all(c.difference == 0 for c in compare(one, other, [mask], LAYERS))
    assert any(c.difference > 0.5 for c in compare(one, other, [~mask], LAYERS))
    # What does not lie token by token is compared whole.
    assert any(c.difference > 0.5 for c in compare(one, other, [np.zeros((1, 4))], LAYERS))


@needs_two
def test_a_head_needs_labels(tmp_path):
    inputs = example_inputs(make_config(), "XGLMForCausalLM")
    del inputs["labels"]
    with pytest.raises(XlmfamError, match="no labels"):
        verify(make(tmp_path / "model"), inputs=inputs)
    base = make(tmp_path / "base", head="XGLMModel")
    assert verify(base, PAIR, inputs=inputs, gradients=False).ok
