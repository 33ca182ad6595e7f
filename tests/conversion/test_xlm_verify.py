"""Verifying XLM: every class is run with all its inputs, and every broken weight is seen."""

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
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "xlm"
TABLE = table_of("xlm")
LM, BOTH = "XLMWithLMHeadModel", "XLMEncoderDecoder"
ADAPTIVE = {"asm": True, "asm_cutoffs": [11, 29], "asm_div_value": 2.0}
TOLERANCE = 5e-5
CASES = {
    **{head: (head, {}) for head in (TABLE.base, *TABLE.heads)},
    "causal": (LM, {"causal": True, "tie_word_embeddings": False}),
    "adaptive": (LM, ADAPTIVE),
    "several_labels": (
        "XLMForSequenceClassification",
        {"problem_type": "multi_label_classification"},
    ),
    "regression": ("XLMForSequenceClassification", {"num_labels": 1, "summary_type": "mean"}),
}


# ---- backends that agree --------------------------------------------------------------------


@needs_two
@pytest.mark.parametrize(
    "name",
    [
        *("plain", "causal", "single", "asm", "sequence", "choice", "token", "span", "beam_span"),
        "sequence_one",  # a regression, whose labels are fractions
    ],
)
def test_all_backends_agree(name):
    verification = verify(GOLDEN / name)
    assert verification.ok, str(verification)
    assert list(verification.backends) == list(BACKENDS)
    assert 0 < verification.largest < TOLERANCE / 5


@needs_two
@pytest.mark.parametrize("head", ["XLMModel", BOTH])
def test_all_backends_agree_on_classes_without_a_golden_folder(tmp_path, head):
    verification = verify(make(tmp_path, head))
    assert verification.ok, str(verification)
    assert list(verification.backends) == list(BACKENDS)
    sides = ["encoder ", "decoder "] if head == BOTH else [""]
    expected = [f"{side}{name}" for side in sides for name in ("embeddings", "layer 0", "layer 1")]
    assert verification.fields[: len(expected)] == expected


# ---- what is compared -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "predictions"),
    [
        ("XLMModel", []),
        (LM, ["logits"]),
        ("XLMForMultipleChoice", ["logits"]),
        ("XLMForQuestionAnsweringSimple", ["start_logits", "end_logits"]),
        ("XLMForQuestionAnswering", ["start_top_log_probs", "end_top_log_probs", "cls_logits"]),
        (BOTH, ["logits"]),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_states_predictions_and_gradients(tmp_path, backend, head, predictions):
    config = make_config(head)
    inputs = example_inputs(config, head)
    observation = runners.observe(backend, make(tmp_path, head), inputs)
    assert list(observation.predictions) == predictions
    assert len(observation.states) == (6 if head == BOTH else 3)
    learned = [n for n, p in TABLE.expand(config, head).items() if p.tied_to is None]
    assert sorted(observation.gradients) == sorted(learned)
    shapes = {name: p.shape for name, p in TABLE.expand(config, head).items()}
    assert all(g.shape == shapes[name] for name, g in observation.gradients.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_loss_does_not_depend_on_has_a_gradient_of_zeros(tmp_path, backend):
    """A decoder without a source leaves the attention over it out."""
    config = make_config(LM, is_encoder=False)
    folder = make(tmp_path, LM, is_encoder=False)
    gradients = runners.observe(backend, folder, example_inputs(config, LM)).gradients
    unused = [name for name in gradients if "encoder_attn" in name or "layer_norm15" in name]
    assert len(unused) == 20
    assert not any(gradients[name].any() for name in unused)
    assert gradients["transformer.attentions.0.q_lin.weight"].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinusoids_have_no_gradient_to_compare(tmp_path, backend):
    config = make_config(LM, sinusoidal_embeddings=True)
    folder = make(tmp_path, LM, sinusoidal_embeddings=True)
    observation = runners.observe(backend, folder, example_inputs(config, LM))
    assert not any("position" in name for name in observation.gradients)
    assert len(observation.gradients) == len(make_arrays(config, LM)) - 1


# ---- what is broken -------------------------------------------------------------------------

# A softmax over the keys, or over the text, does not change when all its scores do.
WITHOUT_EFFECT = (
    r"attentions\.\d\.k_lin\.bias",
    r"encoder_attn\.\d\.k_lin\.bias",
    r"qa_outputs\.(start_logits\.dense|end_logits\.(dense_1|LayerNorm))\.bias",
)


@pytest.mark.parametrize("case", CASES)
def test_every_weight_counts(tmp_path, case):
    """No parameter can be wrong without a difference beyond the tolerance."""
    torch = pytest.importorskip("torch")
    head, settings = CASES[case]
    config = make_config(head, **settings)
    inputs = example_inputs(config, head)
    layers = {name: p.layer for name, p in TABLE.expand(config, head).items()}
    model = runners.load("pt", make(tmp_path, head, **settings))
    masks = [inputs[name] == 1 for name in inputs if name.endswith("attention_mask")]
    masks = [mask.reshape(-1, mask.shape[-1]) for mask in masks]
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
    assert [n for n in unseen if not any(re.search(p + "$", n) for p in WITHOUT_EFFECT)] == []


def broken(tmp_path, head, change, **settings):
    """A sound checkpoint, and a copy of it in another format with ``change`` done to its arrays."""
    config = make_config(head, **settings)
    arrays = make_arrays(config, head)
    sound = save(tmp_path / "sound", arrays, config, head)
    return sound, save(tmp_path / "broken", change(arrays), config, head, format="flax")


def swap(one, other):
    return lambda arrays: {**arrays, one: arrays[other], other: arrays[one]}


def transposed(name):
    return lambda arrays: {**arrays, name: np.ascontiguousarray(arrays[name].T)}


def rolled(name):
    return lambda arrays: {**arrays, name: np.roll(arrays[name], 1, 0)}


@needs_two
@pytest.mark.parametrize(
    ("head", "change", "sound_until", "seen"),
    [
        (
            LM,
            swap("transformer.layer_norm1.1.weight", "transformer.layer_norm2.1.weight"),
            "layer 0",
            "layer 1",
        ),
        (LM, transposed("transformer.attentions.0.out_lin.weight"), "embeddings", "layer 0"),
        (LM, rolled("transformer.lang_embeddings.weight"), None, "embeddings"),
        (LM, rolled("pred_layer.proj.bias"), "layer 1", "logits"),
        ("XLMForQuestionAnsweringSimple", rolled("qa_outputs.weight"), "layer 1", "start_logits"),
        (
            "XLMForQuestionAnswering",
            swap("qa_outputs.answer_class.dense_0.weight", "qa_outputs.end_logits.dense_0.weight"),
            "layer 1",
            "end_top_log_probs",
        ),
        (
            BOTH,
            swap("decoder.encoder_attn.0.q_lin.weight", "decoder.encoder_attn.0.k_lin.weight"),
            "encoder layer 1",
            "decoder layer 0",
        ),
    ],
)
def test_broken_weights_are_seen(tmp_path, head, change, sound_until, seen):
    sound, copy = broken(tmp_path, head, change)
    verification = verify({PAIR[0]: sound, PAIR[1]: copy}, gradients=False)
    wrong = [comparison.field for comparison in verification.differing()]
    assert wrong[0] == seen
    assert "loss" in wrong
    fields = verification.fields
    assert sound_until is None or fields.index(sound_until) < fields.index(wrong[0])


@needs_two
def test_languages_that_a_backend_ignores_are_seen(tmp_path, monkeypatch):
    runner_of = runners.runner_of

    def deaf(backend):
        runner = runner_of(backend)
        if backend == PAIR[1]:
            call = runner.call
            runner.call = lambda model, inputs, gradients: call(
                model, {n: v for n, v in inputs.items() if n != "langs"}, gradients
            )
        return runner

    monkeypatch.setattr(runners, "runner_of", deaf)
    verification = verify(make(tmp_path, LM), PAIR, gradients=False)
    assert "embeddings" in {comparison.field for comparison in verification.differing()}
