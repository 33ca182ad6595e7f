"""XLM's numbers must not pass when a model is wrong: each of these mistakes is made on purpose."""

import numpy as np
import pytest
from golden import (
    arrays,
    assert_call,
    assert_generation,
    assert_gradients,
    cases,
    folder,
    generation,
    load_case,
)

FAMILY = "xlm"
CALLS = {case["name"]: case for case in cases(FAMILY, "calls")}
TRAINING = {case["name"]: case for case in cases(FAMILY, "training")}
GENERATION = {case["name"]: case for case in generation(FAMILY)}
OFF = "fields are off by more than"


def check(backend, name, **overrides):
    case = CALLS[name]
    case = {**case, "overrides": {**case.get("overrides", {}), **overrides}}
    assert_call(backend, load_case(backend, FAMILY, case), FAMILY, case)


def assert_caught(backend, name, match=OFF, **overrides):
    with pytest.raises(AssertionError, match=match):
        check(backend, name, **overrides)


@pytest.fixture
def change(replace, no_traces):
    """Wraps a function of the backend, its modules for XLM included."""
    return lambda name, wrapper: replace(name, wrapper, "XLMForQuestionAnswering")


# ---- mistakes in loading --------------------------------------------------------------------

SWAPS = {
    "query_and_key": ("plain/langs", "q_lin.", "k_lin."),
    "value_and_output": ("plain/langs", "v_lin.", "out_lin."),
    "two_norms": ("plain/langs", "layer_norm1.", "layer_norm2."),
    "two_layers": ("plain/langs", "attentions.0.", "attentions.1."),
    "two_feed_forwards": ("plain/langs", "ffns.0.", "ffns.1."),
    "scale_and_shift": ("plain/langs", "layer_norm_emb.weight", "layer_norm_emb.bias"),
    "two_biases": ("plain/langs", "attentions.1.q_lin.bias", "attentions.1.v_lin.bias"),
    "two_scorers": ("beam_span/inference", "start_logits.dense.", "end_logits.dense_1."),
    "end_and_class": ("beam_span/inference", "end_logits.dense_0.", "answer_class.dense_0."),
}


@pytest.mark.parametrize(("name", "one", "other"), SWAPS.values(), ids=list(SWAPS))
def test_swapped_parameters(backend, read_other, name, one, other):
    read_other(one, other)
    assert_caught(backend, name)


# ---- mistakes in the model ------------------------------------------------------------------

SETTINGS = {
    "activation": ("plain/langs", {"gelu_activation": False}),
    "epsilon": ("single/input_ids", {"layer_norm_eps": 1e-12}),
    "direction": ("plain/langs", {"causal": True}),
    "summary": ("sequence/labels", {"summary_type": "last"}),
    "summary_activation": ("sequence/labels", {"summary_activation": "tanh"}),
    "kind_of_problem": ("sequence/labels_several", {"problem_type": "regression"}),
}


@pytest.mark.parametrize(("name", "settings"), SETTINGS.values(), ids=list(SETTINGS))
def test_another_setting(backend, name, settings):
    assert_caught(backend, name, **settings)


def test_forgotten_languages(backend, change):
    change("resolve_langs", lambda original: lambda config, langs: None)
    check(backend, "plain/input_ids")
    assert_caught(backend, "plain/langs")


def test_languages_that_are_another_one(backend, change):
    def wrapper(original):
        def mistaken(config, langs):
            ids = original(config, langs)
            return None if ids is None else (ids + 1) % config.n_langs

        return mistaken

    change("resolve_langs", wrapper)
    assert_caught(backend, "plain/langs")


def test_shifted_positions(backend, change):
    change("text_positions", lambda original: lambda *a, **k: original(*a, **k) + 1)
    assert_caught(backend, "plain/langs")


def test_positions_that_count_padding(backend, change):
    change("text_positions", lambda original: lambda mask, *a, **k: original(None, *a, **k))
    check(backend, "plain/left_padding")
    assert_caught(backend, "causal/left_padding")


def test_a_masked_model_that_forgets_padding(backend, change):
    change("padding_mask", lambda original: lambda mask, *a, **k: original(None, *a, **k))
    check(backend, "plain/langs")
    assert_caught(backend, "plain/right_padding")


def test_a_causal_model_that_forgets_padding(backend, change):
    change("causal_mask", lambda original: lambda mask, *a, **k: original(None, *a, **k))
    check(backend, "causal/input_ids")
    assert_caught(backend, "causal/left_padding")


def test_a_position_that_is_another_one(backend, change):
    def wrapper(original):
        return lambda hidden, positions: original(hidden, (positions + 1) % hidden.shape[1])

    change("take_positions", wrapper)
    assert_caught(backend, "beam_span/cls_index")


def test_answers_where_none_may_be(backend, change):
    change("forbid", lambda original: lambda logits, p_mask: original(logits, None))
    check(backend, "beam_span/inference")
    assert_caught(backend, "beam_span/p_mask")
    assert_caught(backend, "beam_span/loss_p_mask")


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


def _later_cache(change):
    """Change a cache only: the dict that has ``slen``."""
    return lambda out: change(dict(out)) if "slen" in out else out


OUTPUTS = {
    "ranks": (
        "beam_span/inference",
        lambda out: {**out, "end_top_index": out["end_top_index"][:, ::-1]},
        OFF,
    ),
    "ends_by_start": (
        "beam_span/inference",
        lambda out: {
            **out,
            "end_top_log_probs": np.sort(out["end_top_log_probs"], -1)[:, ::-1],
        },
        OFF,
    ),
    "one_index": (
        "beam_span/inference",
        lambda out: {**out, "start_top_index": out["start_top_index"] + np.eye(1, 3, 2, int)},
        OFF,
    ),
    "start_as_end": (
        "span/everything",
        lambda out: {**out, "start_logits": out["end_logits"], "end_logits": out["start_logits"]},
        OFF,
    ),
    "padding": (
        "plain/right_padding",
        lambda out: {
            **out,
            "hidden_states": [np.where(h == 0, 1e-3, h) for h in out["hidden_states"]],
        },
        OFF,
    ),
    "keys_as_values": (
        "causal/cache",
        _later_cache(lambda out: {**out, 1: out[1][::-1]}),
        "cache: 2 of 4",
    ),
    "layers": (
        "causal/cache",
        _later_cache(lambda out: {"slen": out["slen"], 2: out[0], 3: out[1]}),
        "unexpected fields",
    ),
    "length": ("causal/cache", _later_cache(lambda out: {**out, "slen": 4}), "slen is 4"),
}


@pytest.mark.parametrize(("name", "mistake", "match"), OUTPUTS.values(), ids=list(OUTPUTS))
def test_wrong_outputs(backend, name, mistake, match):
    model = load_case(backend, FAMILY, CALLS[name])
    assert_call(backend, model, FAMILY, CALLS[name])
    with pytest.raises(AssertionError, match=match):
        assert_call(Mistaken(backend, "numpy", mistake), model, FAMILY, CALLS[name])


def test_a_cache_of_another_call(backend):
    """Every step has the whole text: only what is new may count."""
    case = CALLS["causal/cache"]
    model = load_case(backend, FAMILY, case)
    alone = {**case, "steps": case["steps"][1:]}
    with pytest.raises(AssertionError, match="off by more than"):
        assert_call(backend, model, FAMILY, alone)


def test_a_gradient_of_something_that_takes_no_part(backend):
    """A tied adaptive softmax lists the embedding again, without a gradient."""

    def one_more(result):
        loss, gradients = result
        name = "pred_layer.proj.weight"
        return loss, {**gradients, name: gradients["transformer.embeddings.weight"]}

    case = TRAINING["asm/training"]
    mistaken = Mistaken(backend, "loss_and_gradients", one_more)
    with pytest.raises(AssertionError, match="unexpected fields"):
        assert_gradients(mistaken, load_case(backend, FAMILY, case), FAMILY, case)


def test_the_reference_s_own_mistakes_are_caught():
    """Where a call has a number that is known to be wrong, it is far from the right one."""
    found = [
        (case["name"], stored[step["expected"][name]], stored[key])
        for case in CALLS.values()
        for step in case["steps"]
        for stored in [arrays(folder(FAMILY) / case["arrays"])]
        for name, key in step["reference"].items()
    ]
    assert len(found) == 5
    for name, right, wrong in found:
        assert np.abs(right - wrong).max() > 1e-2, name


# ---- mistakes in generation -----------------------------------------------------------------

WRONG_INPUTS = {
    "no_languages": ("greedy", lambda inputs: {"input_ids": inputs["input_ids"]}, {}),
    "no_mask": (
        "greedy_left_padding_no_langs",
        lambda inputs: {**inputs, "attention_mask": np.ones_like(inputs["input_ids"])},
        {},
    ),
    "one_language_for_all": (
        "greedy_langs_per_token",
        lambda inputs: {**inputs, "langs": np.full_like(inputs["langs"], 3)},
        {},
    ),
    "another_mask_token": ("masked_greedy", dict, {"mask_token_id": 5}),
    "another_language": ("masked_lang_id", dict, {"lang_id": 2}),
}


@pytest.mark.parametrize(
    ("name", "mistake", "overrides"), WRONG_INPUTS.values(), ids=list(WRONG_INPUTS)
)
def test_wrong_generation(backend, name, mistake, overrides):
    case = GENERATION[name]
    wrong = {**case, "inputs": mistake(case["inputs"])}
    wrong["overrides"] = {**case.get("overrides", {}), **overrides}
    model = load_case(backend, FAMILY, wrong, "AutoModelForCausalLM")
    with pytest.raises(AssertionError, match="came"):
        assert_generation(backend, model, wrong)
