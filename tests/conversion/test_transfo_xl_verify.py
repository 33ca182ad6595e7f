"""Verifying Transformer-XL: every class is run, all weights count, and what is broken is seen."""

from __future__ import annotations

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
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "transfo_xl"
TABLE = table_of("transfo-xl")
BASE, (LM, CLASSIFIER) = TABLE.base, TABLE.heads
HEADS = (BASE, LM, CLASSIFIER)
TOLERANCE = 5e-5
SHARED = {"untie_r": False, "div_val": 1, "pre_lnorm": True, "same_length": False}


# ---- backends that agree --------------------------------------------------------------------


@needs_two
@pytest.mark.parametrize(
    ("name", "predictions"),
    [
        ("plain", ["prediction_scores", "losses"]),
        ("pre_norm", ["prediction_scores", "losses"]),
        ("sequence", ["logits"]),
    ],
)
def test_all_backends_agree(name, predictions):
    verification = verify(GOLDEN / name, jit=True)
    assert verification.ok, str(verification)
    assert list(verification.backends) == list(BACKENDS)
    assert 0 < verification.largest < TOLERANCE
    fields = [f for f in verification.fields if not f.startswith(("layer", "gradients"))]
    assert fields == ["embeddings", *predictions, "loss"]


@needs_two
def test_a_model_without_a_head(tmp_path):
    verification = verify(make(tmp_path, BASE), jit=True)
    assert verification.ok, str(verification)
    assert verification.fields[:4] == ["embeddings", "layer 0", "layer 1", "loss"]


# ---- the example ----------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_padding_stands_on_the_left(head):
    inputs = example_inputs(make_config(head), head)
    mask = inputs["attention_mask"]
    assert mask.shape == inputs["input_ids"].shape == (3, 12)
    assert mask.sum(1).tolist() == [12, 8, 9]
    assert (np.diff(mask) >= 0).all()
    assert (inputs["input_ids"][mask == 0] == 2).all()


@pytest.mark.parametrize("head", HEADS)
def test_every_cluster_has_words(head):
    config = make_config(head, vocab_size=5000, cutoffs=[20, 40, 60])
    inputs = example_inputs(config, head)
    words = inputs["input_ids"][inputs["attention_mask"] == 1]
    counts = [((first <= words) & (words < end)).sum() for first, end in config.cluster_bounds]
    assert sum(counts) == 29
    assert min(counts) == 7
    whole = example_inputs(make_config(head, cutoffs=[]), head)
    assert whole["input_ids"].max() < 53


def test_no_word_is_predicted_from_padding():
    inputs = example_inputs(make_config(LM), LM)
    mask, labels = inputs["attention_mask"], inputs["labels"]
    assert (labels[1, :6] == -100).tolist() == [True] * 5 + [False]
    assert (labels[2, :5] == -100).tolist() == [True] * 4 + [False]
    assert (labels == -100).sum() == (mask == 0).sum() + 1 + 2
    kept = labels != -100
    assert (labels[kept] == inputs["input_ids"][kept]).all()


# ---- what is broken -------------------------------------------------------------------------

CASES = {
    **{head: (head, {}) for head in HEADS},
    "shared": (LM, SHARED),
    "untied": (LM, {"tie_word_embeddings": False, "proj_share_all_but_first": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_weight_counts(tmp_path, case):
    """No parameter can be wrong without a difference beyond the tolerance."""
    torch = pytest.importorskip("torch")
    head, settings = CASES[case]
    settings = {**settings, "n_layer": 1}
    config = make_config(head, **settings)
    inputs = example_inputs(config, head)
    layers = {name: p.layer for name, p in TABLE.expand(config, head).items()}
    model = runners.load("pt", make(tmp_path, head, **settings))
    masks = [inputs["attention_mask"] == 1]
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
    assert unseen == []


def changed(name):
    def change(arrays):
        array = arrays[name].copy()
        array.flat[array.size // 2] += 0.3
        return {**arrays, name: array}

    return change


def swap(one, other):
    return lambda arrays: {**arrays, one: arrays[other], other: arrays[one]}


ATTENTION = "transformer.layers.{}.dec_attn.{}"
EVERYWHERE = {"prediction_scores", "losses", "loss"}
BIASES = [ATTENTION.format(1, name) for name in ("r_w_bias", "r_r_bias")]


@needs_two
@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (swap(*BIASES), {"layer 1", *EVERYWHERE}),
        (changed("transformer.word_emb.emb_projs.2"), {"embeddings", *EVERYWHERE}),
        (changed("crit.out_layers.1.bias"), {"prediction_scores"}),
    ],
    ids=["biases", "words", "rare_words"],
)
def test_broken_weights_are_seen(tmp_path, change, seen):
    config = make_config(LM)
    arrays = make_arrays(config, LM)
    sound = save(tmp_path / "sound", arrays, config, LM)
    copy = save(tmp_path / "broken", change(arrays), config, LM, format="flax")
    verification = verify({PAIR[0]: sound, PAIR[1]: copy}, gradients=False)
    wrong = {comparison.field for comparison in verification.differing()}
    assert seen <= wrong
    assert "layer 0" not in wrong - seen or "embeddings" in seen


@needs_two
def test_a_backend_that_predicts_from_padding_is_seen(tmp_path, monkeypatch):
    runner_of = runners.runner_of

    def deaf(backend):
        runner = runner_of(backend)
        if backend == PAIR[1]:
            call = runner.call
            runner.call = lambda model, inputs, gradients: call(
                model, {n: v for n, v in inputs.items() if n != "attention_mask"}, gradients
            )
        return runner

    monkeypatch.setattr(runners, "runner_of", deaf)
    verification = verify(make(tmp_path, LM), PAIR, gradients=False)
    assert {"layer 0", "losses"} <= {comparison.field for comparison in verification.differing()}
