"""The assertions must fail when a model is wrong: each of these mistakes is made on purpose."""

import sys

import numpy as np
import pytest
from comparing import assert_close, assert_same_bits, assert_same_tokens
from golden import (
    assert_call,
    assert_generation,
    assert_gradients,
    assert_optimiser_step,
    cases,
    folder,
    generation,
)

from xlmfam.common.checkpoints import models as loading
from xlmfam.common.parameters import is_transposed

FAMILY, HEAD = "xglm", "XGLMForCausalLM"
PLAIN = folder(FAMILY) / "plain"
CALLS = {case["name"]: case for case in cases(FAMILY, "calls")}
TRAINING = {case["name"]: case for case in cases(FAMILY, "training")}
GENERATION = {case["name"]: case for case in generation(FAMILY)}


def check(backend, name, path=PLAIN, **options):
    assert_call(backend, backend.load(HEAD, path, **options), FAMILY, CALLS[name])


def assert_caught(backend, name, path=PLAIN, **options):
    with pytest.raises(AssertionError, match="fields are off by more than"):
        check(backend, name, path, **options)


# ---- mistakes in loading --------------------------------------------------------------------


SWAPS = {
    "query_and_key": ("q_proj.", "k_proj."),
    "value_and_output": ("v_proj.", "out_proj."),
    "two_norms": ("self_attn_layer_norm.", "final_layer_norm."),
    "two_layers": ("layers.0.", "layers.1."),
    "scale_and_shift": ("layers.0.final_layer_norm.weight", "layers.0.final_layer_norm.bias"),
    "two_biases": ("layers.1.self_attn.q_proj.bias", "layers.1.self_attn.v_proj.bias"),
}


@pytest.mark.parametrize(("one", "other"), SWAPS.values(), ids=list(SWAPS))
def test_swapped_parameters(backend, read_other, one, other):
    read_other(one, other)
    assert_caught(backend, "plain/input_ids")
    assert_caught(backend, "plain/left_padding")


def test_a_dropped_transpose_of_square_matrices(backend, monkeypatch):
    relayout = loading.relayout

    def forgetful(array, parameter, source, target):
        out = relayout(array, parameter, source, target)
        turned = is_transposed(parameter, source) != is_transposed(parameter, target)
        square = len(set(parameter.shape)) == 1 and len(parameter.shape) == 2
        return out.T if turned and square else out

    monkeypatch.setattr(loading, "relayout", forgetful)
    other_layout = folder(FAMILY) / "plain_formats" / "flax"
    assert_caught(backend, "plain/input_ids", other_layout if backend.name == "pt" else PLAIN)


def test_one_changed_value(backend, monkeypatch):
    read = loading.ParameterReader.read

    def damaged(reader, name):
        array = read(reader, name)
        if name.endswith("layers.1.fc1.bias"):
            array = array.copy()
            array[3] += 0.01
        return array

    monkeypatch.setattr(loading.ParameterReader, "read", damaged)
    assert_caught(backend, "plain/input_ids")
    with pytest.raises(AssertionError, match="differ"):
        assert_same_bits(
            backend.parameters(backend.load(HEAD, PLAIN)),
            {n: v for n, v in _stored().items() if n != "lm_head.weight"},
        )


def _stored():
    from safetensors.numpy import load_file

    return load_file(PLAIN / "model.safetensors")


# ---- mistakes in the model ------------------------------------------------------------------


def test_shifted_positions(backend, replace):
    replace("text_positions", lambda original: lambda *a, **k: original(*a, **k) + 1)
    assert_caught(backend, "plain/input_ids")


def test_positions_that_count_padding(backend, replace):
    replace("text_positions", lambda original: lambda mask, *a, **k: original(None, *a, **k))
    check(backend, "plain/input_ids")
    assert_caught(backend, "plain/left_padding")


def test_a_forgotten_embedding_scale(backend):
    assert_caught(backend, "plain/input_ids", scale_embedding=False)


def test_another_activation(backend):
    assert_caught(backend, "plain/input_ids", activation_function="relu")
    assert_caught(backend, "plain/input_ids", activation_function="gelu_new")


def test_a_mask_in_the_wrong_direction(backend, replace):
    def wrapper(original):
        def mistaken(*args, **kwargs):
            mask = original(*args, **kwargs)
            if hasattr(mask, "bias"):
                return mask._replace(bias=mask.bias.transpose(-1, -2))
            return backend.tensor(np.swapaxes(backend.array(mask), -1, -2).copy())

        return mistaken

    replace("causal_mask", wrapper)
    assert_caught(backend, "plain/left_padding")


def test_a_mask_that_forgets_padding(backend, replace):
    replace("causal_mask", lambda original: lambda mask, *a, **k: original(None, *a, **k))
    check(backend, "plain/input_ids")
    assert_caught(backend, "plain/left_padding")


def test_a_forgotten_encoder_mask(backend, replace):
    replace("padding_mask", lambda original: lambda *args, **kwargs: original(None, *args[1:]))
    assert_caught(backend, "cross/encoder_mask", folder(FAMILY) / "cross")


def test_labels_that_are_not_shifted(backend, replace):
    def wrapper(original):
        def mistaken(logits, labels):
            moved = np.roll(backend.array(labels), 1, axis=1)
            return original(logits, backend.tensor(moved))

        return mistaken

    replace("causal_lm_loss", wrapper)
    check(backend, "plain/input_ids")
    assert_caught(backend, "plain/labels")


@pytest.mark.parametrize("name", ["plain/input_ids", "plain/left_padding", "plain/labels"])
def test_what_is_right_passes(backend, name):
    check(backend, name)


# ---- mistakes in outputs --------------------------------------------------------------------


class Mistaken:
    """A backend whose results pass through a function."""

    def __init__(self, backend, method, change):
        self.backend, self.method, self.change = backend, method, change

    def __getattr__(self, name):
        original = getattr(self.backend, name)
        if name != self.method:
            return original
        return lambda *args, **kwargs: self.change(original(*args, **kwargs))


OUTPUTS = {
    "missing": lambda out: {**out, "attentions": out["attentions"][:-1]},
    "swapped": lambda out: {**out, "hidden_states": out["hidden_states"][::-1]},
    "nan": lambda out: {**out, "logits": np.where(out["logits"] > 1, np.nan, out["logits"])},
    "rounded": lambda out: {**out, "logits": out["logits"].astype(np.float16)},
    "keys_as_values": lambda out: {
        **out,
        "past_key_values": tuple(layer[::-1] for layer in out["past_key_values"]),
    },
}


@pytest.mark.parametrize("change", OUTPUTS.values(), ids=list(OUTPUTS))
def test_wrong_outputs(backend, change):
    model = backend.load(HEAD, PLAIN)
    assert_call(backend, model, FAMILY, CALLS["plain/everything"])
    with pytest.raises(AssertionError):
        assert_call(Mistaken(backend, "numpy", change), model, FAMILY, CALLS["plain/everything"])


def _without_one(result):
    loss, gradients = result
    return loss, {n: g for n, g in gradients.items() if not n.endswith("layers.1.fc2.bias")}


def _one_doubled(result):
    loss, gradients = result
    return loss, {n: g * (1 + n.endswith("layers.1.fc2.bias")) for n, g in gradients.items()}


def _one_row_missing(result):
    loss, gradients = result
    name = "model.embed_tokens.weight"
    changed = gradients[name].copy()
    changed[np.abs(changed).max(-1).argmin()] = 0
    return loss, {**gradients, name: changed}


@pytest.mark.parametrize("change", [_without_one, _one_doubled, _one_row_missing])
def test_wrong_gradients(backend, change):
    mistaken = Mistaken(backend, "loss_and_gradients", change)
    with pytest.raises(AssertionError, match="gradients: 1 of"):
        assert_gradients(mistaken, backend.load(HEAD, PLAIN), FAMILY, TRAINING["plain/training"])


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_step_of_another_length(backend, rule):
    case = TRAINING["plain/training"]
    options = case[rule]["options"]
    longer = {**options, "lr": 1.1 * options["lr"]}
    wrong = {**case, rule: {**case[rule], "options": longer}}
    with pytest.raises(AssertionError):
        assert_optimiser_step(backend, backend.load(HEAD, PLAIN), FAMILY, wrong, rule)


# ---- mistakes in generation -----------------------------------------------------------------


def test_a_cache_that_is_not_reordered(backend, monkeypatch, no_traces):
    in_place = backend.name == "pt"
    cache = sys.modules[f"xlmfam.{backend.name}.cache"].KeyValueCache
    monkeypatch.setattr(cache, "reorder", lambda self, rows: None if in_place else self)
    untied = backend.load(HEAD, folder(FAMILY) / "untied")
    assert_generation(backend, untied, GENERATION["greedy"])
    with pytest.raises(AssertionError):
        assert_generation(backend, untied, GENERATION["beam_scores"])


LAST = np.eye(10)[9].astype(bool)
GENERATED = {
    "one_token": lambda out: {**out, "sequences": np.where(LAST, 5, out["sequences"])},
    "shorter": lambda out: {**out, "sequences": out["sequences"][:, :-1]},
    "scores": lambda out: {**out, "sequences_scores": out["sequences_scores"] * 1.01},
    "origins": lambda out: {**out, "beam_indices": out["beam_indices"][:, ::-1]},
}


@pytest.mark.parametrize("change", GENERATED.values(), ids=list(GENERATED))
def test_wrong_generation(backend, change):
    model = backend.load(HEAD, folder(FAMILY) / "untied")
    with pytest.raises(AssertionError):
        assert_generation(Mistaken(backend, "generate", change), model, GENERATION["beam_scores"])


# ---- the comparisons themselves -------------------------------------------------------------

ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        ({}, {"a": ONES}),
        ({"a": ONES}, {}),
        ({"a": ONES, "b": ONES}, {"a": ONES}),
        ({"a": ONES}, {"a": ONES[:, :2]}),
        ({"a": ONES[:1]}, {"a": ONES}),
        ({"a": ONES * np.nan}, {"a": ONES}),
        ({"a": ONES * np.nan}, {"a": ONES * np.nan}),
        ({"a": ONES}, {"a": ONES * np.inf}),
        ({"a": -ONES * np.inf}, {"a": ONES * np.inf}),
        ({"a": ONES * 1.0001}, {"a": ONES}),
        ({"a": ONES * 1e-9}, {"a": ONES * 0}),
        ({"a": [ONES, ONES]}, {"a": [ONES]}),
        ({"a": None}, {"a": ONES}),
    ],
)
def test_close_is_not_this(came, expected):
    with pytest.raises(AssertionError):
        assert_close(came, expected, 5e-5)


def test_close_is_this_and_the_worst_comes_first():
    assert_close({"a": [ONES, {"b": ONES}]}, {"a": (ONES, {"b": ONES * (1 + 1e-5)})}, 5e-5)
    masked = np.where(np.eye(3) > 0, -np.inf, 1.0)
    assert_close({"a": masked}, {"a": masked}, 5e-5)
    with pytest.raises(
        AssertionError, match=r"(?s)here: 2 of 3 .*\n  b.1: error 0.1.*\n  a: error"
    ):
        assert_close(
            {"a": ONES, "b": [ONES, ONES], "c": None},
            {"a": ONES / 1.01, "b": [ONES, ONES / 1.1]},
            5e-5,
            "here",
        )


@pytest.mark.parametrize(
    "other",
    [-0.0 * ONES, ONES.astype(np.float64), ONES[:, :2], ONES * np.float32(1 + 2**-23)],
)
def test_same_bits_is_not_this(other):
    base = 0.0 * ONES if not other.any() else ONES
    with pytest.raises(AssertionError):
        assert_same_bits({"a": other}, {"a": base})
    with pytest.raises(AssertionError):
        assert_same_bits({"b": base}, {"a": base})


def test_same_tokens_is_not_this():
    for other in ([[1, 2, 4]], [[1, 2]], [[1, 2, 3], [1, 2, 3]]):
        with pytest.raises(AssertionError, match="came"):
            assert_same_tokens(other, [[1, 2, 3]])
