"""What a caller gets wrong, and calls at the edge, are met alike in all backends."""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS, get_backend
from tiny_checkpoints import make

IDS = np.array([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(params=BACKENDS)
def backend(request):
    return get_backend(request.param)


@pytest.fixture
def model(backend, tmp_path):
    return backend.load("XGLMForCausalLM", make(tmp_path))


def past(layers=2, batch=2, heads=3):
    layer = np.zeros((batch, heads, 2, 4), np.float32)
    return ((layer, layer),) * layers


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": IDS[:, :0]}, "input_ids needs at least one token"),
        ({"input_ids": IDS, "labels": IDS + 60}, "labels holds 72"),
        ({"input_ids": IDS, "labels": IDS * 0 - 1}, "labels holds -1"),
        ({"input_ids": IDS, "labels": IDS.astype(np.float32)}, "labels must hold integers"),
        ({"input_ids": IDS, "past_key_values": past(layers=1)}, "each of the 2 layers, got 1"),
        ({"input_ids": IDS, "past_key_values": past(batch=1)}, "past_key_values must have shape"),
        ({"input_ids": IDS, "past_key_values": past(heads=2)}, "past_key_values must have shape"),
    ],
)
def test_inputs(backend, model, inputs, message):
    with pytest.raises(ValueError, match=message):
        backend.call(model, inputs)


@pytest.mark.parametrize(
    ("head", "shape", "wrong", "most"),
    [
        ("XLMForSequenceClassification", (2,), 7, 6),
        ("XLMForTokenClassification", (2, 4), -1, 6),
        ("XLMForMultipleChoice", (2,), 3, 2),
        ("XmodForSequenceClassification", (2,), -1, 6),
        ("XmodForTokenClassification", (2, 4), 7, 6),
        ("XmodForMultipleChoice", (2,), 3, 2),
    ],
)
def test_classes_that_are_not_there(backend, tmp_path, head, shape, wrong, most):
    model = backend.load(head, make(tmp_path, head))
    ids = np.stack([IDS] * 3, 1) if "Choice" in head else IDS
    inputs = {"input_ids": ids}
    if head.startswith("Xmod"):
        inputs["lang_ids"] = np.array([0, 2])
    labels = np.full(shape, -100)  # does not count
    labels.flat[0] = most
    assert np.isfinite(backend.call(model, {**inputs, "labels": labels})["loss"])
    labels.flat[0] = wrong
    with pytest.raises(ValueError, match=rf"labels holds {wrong}, outside \[0, {most}\]"):
        backend.call(model, {**inputs, "labels": labels})


@pytest.mark.parametrize(
    ("rows", "room", "message"),
    [(3, 8, "has 3 rows, the inputs have 2"), (2, 3, "the cache holds 3 tokens, 4 are needed")],
)
def test_caches(backend, model, rows, room, message):
    cache = model.init_cache(rows, room)
    with pytest.raises(ValueError, match=message):
        backend.run(model, input_ids=backend.tensor(IDS), past_key_values=cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_config": {"max_new_tokens": 2}}, "generation_config must be a Generation"),
        ({"head_mask": np.ones((9, 9), np.float32)}, "head_mask must have shape"),
    ],
)
def test_generate(backend, model, options, message):
    options = {name: backend.tensor(value) for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        backend.generate(model, {"input_ids": IDS}, **options)


@pytest.mark.parametrize("value", [IDS.tolist(), IDS])
def test_what_is_no_tensor_in_pytorch(tmp_path, value):
    model = get_backend("pt").load("XGLMForCausalLM", make(tmp_path))
    with pytest.raises(ValueError, match="input_ids must be a"):
        model(input_ids=value)
    with pytest.raises(ValueError, match="input_ids must be a"):
        model.generate(input_ids=value)


def test_one_token_and_nothing_else(backend, model):
    alone = backend.call(model, {"input_ids": IDS[:, :1]})["logits"]
    first = backend.call(model, {"input_ids": IDS})["logits"][:, :1]
    np.testing.assert_allclose(alone, first, atol=1e-5)


def test_no_rows_at_all(backend, model):
    assert backend.call(model, {"input_ids": IDS[:0]})["logits"].shape == (0, 4, 61)


def test_of_equal_beams_the_first_token_wins(backend, tmp_path):
    """Forced ends are equally good: no backend may take another one than the others.

    The size is one for which torch's ``topk`` by itself puts the later one first.
    """
    model = backend.load("XGLMForCausalLM", make(tmp_path, vocab_size=12))
    ids = backend.generate(
        model,
        {"input_ids": np.arange(5, 10)[:, None]},
        max_new_tokens=1,
        num_beams=2,
        forced_eos_token_id=[2, 5],
        eos_token_id=None,
        pad_token_id=1,
    )
    assert ids[:, 1].tolist() == [2] * 5


def test_a_mask_as_long_as_the_cache(backend, model):
    mask = np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    long = np.concatenate([mask, np.ones((2, 4), mask.dtype)], 1)
    logits = []
    for given in (mask, long):
        arguments = {"input_ids": IDS, "attention_mask": given}
        cache = model.init_cache(2, 8)
        tensors = {name: backend.tensor(value) for name, value in arguments.items()}
        output = backend.run(model, **tensors, past_key_values=cache)
        logits.append(backend.array(output["logits"]))
    np.testing.assert_array_equal(logits[0], logits[1])
