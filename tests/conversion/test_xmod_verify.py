"""Verifying X-MOD: every class is run in all its languages, and every broken adapter is seen."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import make, make_arrays, make_config, save

from xlmfam.common.parameters import table_of
from xlmfam.conversion import runners, verify
from xlmfam.conversion.examples import example_inputs
from xlmfam.conversion.verify import compare

BACKENDS = runners.installed_backends()
needs_two = pytest.mark.skipif(len(BACKENDS) < 2, reason="needs two frameworks")
PAIR = [*BACKENDS[:1], *BACKENDS[-1:]]
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "xmod"
TABLE = table_of("xmod")
LM, CAUSAL = "XmodForMaskedLM", "XmodForCausalLM"
CROSS = {"is_decoder": True, "add_cross_attention": True}
OWN_NORM = {"adapter_layer_norm": True, "adapter_reuse_layer_norm": False}
TOLERANCE = 5e-5
ADAPTER = "roberta.encoder.layer.{}.output.adapter_modules.{}.dense1.weight"


# ---- backends that agree --------------------------------------------------------------------


@needs_two
@pytest.mark.parametrize(
    ("name", "predictions"),
    [
        ("plain", ["logits"]),
        ("cross", ["logits"]),
        ("pre_norm_own", ["logits"]),
        ("relative_key_query", ["logits"]),
        ("sequence_one", ["logits"]),
        ("choice", ["logits"]),
        ("token", ["logits"]),
        ("span", ["start_logits", "end_logits"]),
        ("base", ["pooler_output"]),
    ],
)
def test_all_backends_agree(name, predictions):
    verification = verify(GOLDEN / name)
    assert verification.ok, str(verification)
    assert list(verification.backends) == list(BACKENDS)
    assert 0 < verification.largest < TOLERANCE / 5
    fields = [f for f in verification.fields if not f.startswith(("layer", "gradients"))]
    assert fields == ["embeddings", *predictions, "loss"]


@needs_two
@pytest.mark.parametrize("settings", [{}, CROSS], ids=["encoder", "decoder"])
def test_a_checkpoint_without_a_default_language(tmp_path, settings):
    folder = make(tmp_path, "XmodModel", **settings, default_language=None)
    verification = verify(folder)
    assert verification.ok, str(verification)
    assert "gradients, layer 1" in verification.fields


# ---- the example ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 24, 81])
@pytest.mark.parametrize("head", [LM, "XmodForMultipleChoice"])
def test_every_language_has_a_token(head, count):
    languages = [f"x{number}" for number in range(count)]
    config = make_config(head, languages=languages, max_position_embeddings=64)
    inputs = example_inputs(config, head)
    assert inputs["lang_ids"].shape == inputs["input_ids"].shape
    assert {*inputs["lang_ids"][inputs["attention_mask"] == 1]} == set(range(count))


def test_a_short_text_has_as_many_languages_as_tokens():
    languages = [f"x{number}" for number in range(40)]
    config = make_config(LM, languages=languages, max_position_embeddings=8)
    inputs = example_inputs(config, LM)
    assert inputs["input_ids"].shape == (3, 6)
    assert len({*inputs["lang_ids"][inputs["attention_mask"] == 1]}) == 6 + 4 + 5


def test_no_token_is_predicted_from_padding():
    inputs = example_inputs(make_config(CAUSAL), CAUSAL)
    assert (inputs["labels"][1, :6] == -100).tolist() == [True] * 5 + [False]
    assert (inputs["labels"] == -100).sum() == 4 + 3 + 2


@pytest.mark.parametrize("head", ["XmodModel", LM, CAUSAL])
def test_decoders_have_an_encoder_to_look_at(head):
    inputs = example_inputs(make_config(head, **CROSS), head)
    states, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    assert states.shape == (3, 14, 20)
    assert states.dtype == np.float32
    assert mask.sum(1).tolist() == [14, 10, 11]
    assert (mask[1, 0], mask[2, -1]) == (0, 0)
    for settings in ({"is_decoder": True}, {"add_cross_attention": True, "is_decoder": False}):
        plain = example_inputs(make_config(head, **settings), head)
        assert not [name for name in plain if "encoder" in name]


# ---- what is broken -------------------------------------------------------------------------

CASES = {
    **{head: (head, {}) for head in (TABLE.base, *TABLE.heads)},
    "cross": (CAUSAL, CROSS),
    "relative": (LM, {"position_embedding_type": "relative_key_query"}),
    "pre_norm": (LM, {"pre_norm": True, **OWN_NORM, "ln_before_adapter": False}),
    "untied": (LM, {"tie_word_embeddings": False}),
}
# A softmax over the keys does not change when all its scores do; distances are no positions.
WITHOUT_EFFECT = {"relative": r"self\.key\.bias$|position_embeddings"}


@pytest.mark.parametrize("case", CASES)
def test_every_weight_counts(tmp_path, case):
    """No parameter can be wrong without a difference beyond the tolerance."""
    torch = pytest.importorskip("torch")
    head, settings = CASES[case]
    settings = {**settings, "num_hidden_layers": 1}
    config = make_config(head, **settings)
    inputs = example_inputs(config, head)
    layers = {name: p.layer for name, p in TABLE.expand(config, head).items()}
    model = runners.load("pt", make(tmp_path, head, **settings))
    masks = [inputs["attention_mask"].reshape(-1, inputs["attention_mask"].shape[-1]) == 1]
    sound = runners.observe_model("pt", model, inputs, gradients=False)
    unseen = []
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.1).add_(0.01)
        broken = runners.observe_model("pt", model, inputs, gradients=False)
        with torch.no_grad():
            parameter.copy_(kept)
        found = compare(sound, broken, masks, layers)
        if all(comparison.passes(TOLERANCE) for comparison in found):
            unseen.append(name)
    expected = WITHOUT_EFFECT.get(case, r"self\.key\.bias$")
    assert [name for name in unseen if not re.search(expected, name)] == []


def broken(tmp_path, head, change, **settings):
    """A sound checkpoint, and a copy of it in another format with ``change`` done to its arrays."""
    config = make_config(head, **settings)
    arrays = make_arrays(config, head)
    sound = save(tmp_path / "sound", arrays, config, head)
    return sound, save(tmp_path / "broken", change(arrays), config, head, format="flax")


def changed(name):
    def change(arrays):
        array = arrays[name].copy()
        array.flat[array.size // 2] += 0.3
        return {**arrays, name: array}

    return change


def swap(one, other):
    return lambda arrays: {**arrays, one: arrays[other], other: arrays[one]}


def rolled(name):
    return lambda arrays: {**arrays, name: np.roll(arrays[name], 1, 0)}


MANY = {"languages": [f"x{number}" for number in range(45)], "max_position_embeddings": 64}
CROSSED = "roberta.encoder.layer.1.crossattention.self.{}.weight"


@needs_two
@pytest.mark.parametrize(
    ("head", "change", "settings", "seen"),
    [
        (LM, changed(ADAPTER.format(1, "en_XX")), {}, "layer 1"),
        (LM, changed(ADAPTER.format(0, "sw_KE")), {}, "layer 0"),
        (LM, swap(ADAPTER.format(1, "de_DE"), ADAPTER.format(1, "sw_KE")), {}, "layer 1"),
        (LM, swap(ADAPTER.format(0, "en_XX"), ADAPTER.format(1, "en_XX")), {}, "layer 0"),
        (LM, changed(ADAPTER.format(1, "x37")), MANY, "layer 1"),
        (CAUSAL, swap(CROSSED.format("query"), CROSSED.format("key")), CROSS, "layer 1"),
        (
            LM,
            rolled("roberta.encoder.layer.0.attention.self.distance_embedding.weight"),
            {"position_embedding_type": "relative_key"},
            "layer 0",
        ),
    ],
    ids=["one", "another", "languages", "layers", "many", "cross", "distances"],
)
def test_broken_weights_are_seen(tmp_path, head, change, settings, seen):
    sound, copy = broken(tmp_path, head, change, **settings)
    verification = verify({PAIR[0]: sound, PAIR[1]: copy}, gradients=False)
    wrong = [comparison.field for comparison in verification.differing()]
    assert wrong[0] == seen
    assert "logits" in wrong


@needs_two
@pytest.mark.parametrize("name", ["lang_ids", "encoder_hidden_states", "encoder_attention_mask"])
def test_what_a_backend_ignores_is_seen(tmp_path, monkeypatch, name):
    runner_of = runners.runner_of

    def deaf(backend):
        runner = runner_of(backend)
        if backend == PAIR[1]:
            call = runner.call
            runner.call = lambda model, inputs, gradients: call(
                model, {n: v for n, v in inputs.items() if n != name}, gradients
            )
        return runner

    monkeypatch.setattr(runners, "runner_of", deaf)
    folder = make(tmp_path, CAUSAL, **CROSS, default_language="en_XX")
    verification = verify(folder, PAIR, gradients=False)
    assert {"layer 0", "logits"} <= {comparison.field for comparison in verification.differing()}
