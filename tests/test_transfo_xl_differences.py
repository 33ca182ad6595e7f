"""Where Transformer-XL differs from transformers 4.37.2 on purpose: what it does, and what we do.

The README lists the differences. Numbers of transformers are those of tests/data; where its
mistakes can be had from xlmfam by making them by hand, that is shown too. What it refuses was
observed and stands in tests/reference/NOTES.md. Differences of the tokenizer and of the corpora
are shown in tests/common, by test_tokenizer_transfo_xl.py, test_tokenizer_transfo_xl_old.py and
test_corpora.py; pickles by tests/conversion/test_hostile_transfo_xl.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from backends import get_backend
from comparing import assert_close, assert_same_tokens, error_of
from golden import GOLDEN, LoadedOnce, arrays, cases, folder, generation, load_case, resolve
from tolerances import MODEL

from xlmfam import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.conversion.runners import installed_backends

FAMILY = "transfo-xl"
LM, CLASSIFIER = "TransfoXLLMHeadModel", "TransfoXLForSequenceClassification"
MANIFEST = json.loads((GOLDEN.parent / "manifests" / "transfo_xl.json").read_text(encoding="utf-8"))
CALLS = {case["name"]: case for case in cases(FAMILY, "calls")}
GENERATED = {case["name"]: {**case, "class": LM} for case in generation(FAMILY)}
RESIZED = {case["name"]: case for case in cases(FAMILY, "resizing")}
IDS = np.array([[9, 41, 39, 30, 19, 10, 7], [48, 35, 43, 40, 12, 36, 2]])


@pytest.fixture(scope="module")
def models():
    """Loads the model of a case once."""
    return LoadedOnce()


def simplest():
    """Return a backend for single calls; Flax would compile every operation for their lengths."""
    return get_backend(installed_backends()[0])


def read(name, step=0):
    """Return inputs, expected numbers and those that the reference gets wrong, of a step."""
    case = CALLS[name]
    stored, step = arrays(folder(FAMILY) / case["arrays"]), case["steps"][step]
    return tuple(
        resolve(step.get(kind, {}), stored) for kind in ("inputs", "expected", "reference")
    )


# ---- losses and labels --------------------------------------------------------------------


def in_cluster_order(losses, labels, cutoffs):
    """Return losses (B, S - 1) as transformers orders them: by cluster, zeros at the end."""
    targets = labels[:, 1:].flatten()
    cluster = np.searchsorted(cutoffs, targets, side="right")
    cluster[targets == -100] = len(cutoffs) + 1
    return losses.flatten()[np.argsort(cluster, kind="stable")].reshape(losses.shape)


@pytest.mark.parametrize("name", ["plain/labels", "plain/labels_ignored"])
def test_losses_stand_where_their_labels_do(backend, models, name):
    model = models(backend, FAMILY, CALLS[name])
    inputs, expected, wrong = read(name)
    came = backend.call(model, inputs)["losses"]
    assert error_of(came, expected["losses"]) < MODEL
    assert not came[inputs["labels"][:, 1:] == -100].any()
    by_hand = in_cluster_order(came, inputs["labels"], model.config.cutoffs)
    assert error_of(by_hand, wrong["losses"]) < MODEL
    assert error_of(came, wrong["losses"]) > 0.01


def test_labels_are_never_changed(backend, models):
    """A first row without labels: transformers writes the end token into it, and counts that."""
    name = "plain/labels_ignored_in_a_row"
    model = models(backend, FAMILY, CALLS[name])
    inputs, expected, wrong = read(name)
    labels = inputs["labels"].copy()
    given = {**inputs, "labels": backend.tensor(labels)}
    came = backend.call(model, given)
    assert np.array_equal(backend.array(given["labels"]), inputs["labels"])
    assert np.array_equal(labels, inputs["labels"])
    assert error_of(came["losses"], expected["losses"]) < MODEL
    assert came["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)

    labels = inputs["labels"].copy()
    labels[0, 1] = model.config.eos_token_id
    by_hand = backend.call(model, {**inputs, "labels": labels})
    assert by_hand["loss"] == pytest.approx(float(wrong["loss"]), rel=1e-5)
    ordered = in_cluster_order(by_hand["losses"], labels, model.config.cutoffs)
    assert error_of(ordered, wrong["losses"]) < MODEL
    assert abs(came["loss"] - wrong["loss"]) > 0.01


def test_the_kind_of_problem_is_not_written_into_the_config(backend, models):
    """transformers keeps what it guessed from the first labels, and goes by it from then on."""
    for name in ("sequence/labels", "sequence/labels_several"):
        model = models(backend, FAMILY, CALLS[name])
        inputs, expected, _ = read(name)
        loss = backend.call(model, inputs)["loss"]
        assert loss == pytest.approx(float(np.mean(expected["loss"])), rel=1e-5)
        assert model.config.problem_type is None


# ---- what is seen -------------------------------------------------------------------------


def test_texts_to_come_are_not_seen_without_a_memory(backend, models):
    """transformers has no mask at all for ``same_length`` with ``mem_len`` 0."""
    name = "plain/memory_none"
    model = models(backend, FAMILY, CALLS[name])
    assert (model.config.same_length, model.config.mem_len) == (True, 0)
    inputs, expected, wrong = read(name)
    came = backend.call(model, inputs)["prediction_scores"]
    assert error_of(came, expected["prediction_scores"]) < MODEL
    assert error_of(came, wrong["prediction_scores"]) > 0.01
    other = inputs["input_ids"].copy()
    other[:, -1] = (other[:, -1] + 5) % model.config.vocab_size
    changed = backend.call(model, {"input_ids": other})["prediction_scores"]
    assert error_of(changed[:, :-1], came[:, :-1]) < MODEL
    assert error_of(changed[:, -1], came[:, -1]) > 0.01


def test_padding_on_the_left_is_not_read(backend, models):
    """transformers refuses ``attention_mask`` and so reads padding as text."""
    # Where all of the memory is seen, padding could be too.
    case = {**CALLS["plain/input_ids"], "overrides": {"same_length": False}}
    model = models(backend, FAMILY, case)
    assert "attention_mask" not in MANIFEST["signatures"][LM]
    padded, mask = IDS.copy(), np.ones_like(IDS)
    padded[1, :3], mask[1, :3] = 0, 0
    inputs = {"input_ids": padded, "attention_mask": mask}
    came = backend.call(model, inputs)
    one = simplest()
    alone = one.call(models(one, FAMILY, case), {"input_ids": IDS[1:, 3:]})
    assert error_of(came["prediction_scores"][1, 3:], alone["prediction_scores"][0]) < MODEL
    assert_close([m[:, 1:] for m in came["mems"]], list(alone["mems"]), MODEL, "mems")
    without = backend.call(model, {"input_ids": padded})["prediction_scores"]
    assert error_of(without[1, 3:], alone["prediction_scores"][0]) > 0.01
    assert error_of(without[0], came["prediction_scores"][0]) < MODEL


def test_generation_honours_attention_mask(backend, models):
    case = GENERATED["greedy_left_padding"]
    model, inputs = models(backend, FAMILY, case), case["inputs"]
    assert not np.all(inputs["attention_mask"])
    came = backend.generate(model, inputs, **case["kwargs"])
    assert_same_tokens(came, case["expected"]["sequences"])
    without = {**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])}
    assert backend.generate(model, without, **case["kwargs"]).tolist() != came.tolist()


def test_generation_goes_on_from_mems(backend, models):
    """transformers takes ``mems`` and does as if there were none."""
    case = GENERATED["greedy"]
    model, (prompt,) = models(backend, FAMILY, case), np.array(case["inputs"]["input_ids"])[None]
    one = simplest()
    mems = one.call(models(one, FAMILY, case), {"input_ids": IDS[:1] % 30})["mems"]
    options = {"max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
    options["mems"] = [backend.tensor(memory) for memory in mems]
    (scores,) = backend.generate(model, {"input_ids": prompt}, **options)["scores"]
    read_on = one.call(models(one, FAMILY, case), {"input_ids": prompt, "mems": mems})
    assert error_of(scores, read_on["prediction_scores"][:, -1]) < MODEL
    assert error_of(scores, case["expected"]["scores"][0]) > 0.01


# ---- shapes and sizes ---------------------------------------------------------------------


def test_the_score_of_a_class_reads_hidden_states(backend):
    """transformers makes it of the width of embeddings, and fails where that is another."""
    variant = MANIFEST["variants"]["plain"]
    assert variant["classes"][CLASSIFIER]["pt_state_dict"]["score.weight"] == [7, 12]
    model = backend.load(CLASSIFIER, folder(FAMILY) / "plain", num_labels=7, pad_token_id=0)
    assert (model.config.d_embed, model.config.d_model) == (12, 18)
    assert backend.parameters(model)["score.weight"].shape == (7, 18)
    assert backend.call(model, {"input_ids": IDS})["logits"].shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("one_width/resized_51_default", {"cutoffs": [51, 51, 51]}),
        ("untied/resized_40_default", {"error": "RuntimeError"}),
    ],
)
def test_a_larger_vocabulary_leaves_old_words_as_they_were(pt, name, given):
    """Of one width, transformers ends with clusters of no words; untied, with a head too small.

    Every backend is resized in tests/equivalence/test_golden_memories.py.
    """
    case = RESIZED[name]
    reference = {**case["reference"]["config"], **case["reference"]}
    assert given.items() <= reference.items()
    model = load_case(pt, FAMILY, case)
    before = list(model.config.cutoffs)
    ids = IDS % 30  # every word is an old one
    old = pt.call(model, {"input_ids": ids})["prediction_scores"]
    model.resize_token_embeddings(**case["arguments"])
    assert model.config.cutoffs == before
    new = pt.call(model, {"input_ids": ids})["prediction_scores"]
    assert new.shape[-1] == case["arguments"]["new_num_tokens"]
    # The last cluster shares its chances among more words; those of the others stay.
    assert error_of(new[..., : before[-1]], old[..., : before[-1]]) < MODEL
    np.testing.assert_allclose(np.exp(np.float64(new)).sum(-1), 1, rtol=1e-5)


# ---- frameworks ---------------------------------------------------------------------------


def test_every_class_is_in_every_framework(backend):
    """transformers has them in PyTorch and for Keras 2."""
    signatures = MANIFEST["signatures"]
    assert not any(name.startswith("Flax") for name in signatures)
    prefix = {"pt": "", "tf": "TF", "flax": "Flax"}[backend.name]
    for name in ("TransfoXLModel", LM, CLASSIFIER):
        assert f"TF{name}" in signatures
        assert backend.cls(prefix + name) is backend.cls(name)


def test_what_tensorflow_lacks_there(tf, models):
    """``div_val`` 1, shared biases, losses and generation: errors, or nothing, in transformers."""
    variants = MANIFEST["variants"]
    for name, error in (
        ("no_division", "NotImplementedError"),
        ("shared_position_biases", "AttributeError"),
        ("own_projections", "TypeError"),
    ):
        assert variants[name]["classes"][LM]["h5_error"] == error
        config = TransfoXLConfig(**variants[name]["options"])
        assert (
            tf.call(tf.build(LM, config), {"input_ids": IDS})["prediction_scores"].shape[-1] == 53
        )
    case = CALLS["one_width/labels"]
    model = models(tf, FAMILY, case)
    assert (model.config.div_val, model.config.untie_r) == (1, False)
    inputs, expected, _ = read("one_width/labels")
    came = tf.call(model, inputs)
    assert error_of(came["losses"], expected["losses"]) < MODEL
    assert came["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
    case = GENERATED["greedy_one_width"]
    came = tf.generate(models(tf, FAMILY, case), case["inputs"], **case["kwargs"])
    assert_same_tokens(came, case["expected"]["sequences"])


@pytest.mark.parametrize("kind", ["plain", "pre_norm"])
def test_files_of_tensorflow_are_read(backend, kind):
    """transformers reads no weights of its own ``tf_model.h5``, and goes on with random ones."""
    model = backend.load(LM, folder(FAMILY) / f"{kind}_formats" / "tf")
    expected = backend.parameters(backend.load(LM, folder(FAMILY) / kind))
    came = backend.parameters(model)
    assert came.keys() == expected.keys()
    assert all(np.array_equal(came[name], value) for name, value in expected.items())


# ---- mistakes -----------------------------------------------------------------------------


def test_mistakes_are_named(backend, models):
    """transformers: errors of the framework in the middle of the work, or not a word."""
    model = models(backend, FAMILY, CALLS["plain/input_ids"])
    mems = backend.raw_call(model, {"input_ids": IDS}).mems

    def refused(message, **inputs):
        with pytest.raises(XlmfamError, match=message):
            backend.call(model, inputs)

    refused("input_ids", input_ids=np.array([[4, 53]]))  # embedded as zeros
    refused("input_ids", input_ids=np.array([[4, -1]]))
    refused("labels holds 53", input_ids=IDS, labels=np.full_like(IDS, 53))  # ignored
    refused("two tokens in a row", input_ids=IDS[:, :1], labels=IDS[:, :1])
    refused("2 layers, got 1", input_ids=IDS, mems=mems[:1])
    refused("mems must have shape", input_ids=IDS[:1], mems=mems)
    with pytest.raises(XlmfamError, match=r"and no 3$"):
        model.resize_token_embeddings(60, layer=3)
    case = {**CALLS["sequence/labels"], "overrides": {"pad_token_id": None}}
    classifier = models(backend, FAMILY, case)
    with pytest.raises(XlmfamError, match="set pad_token_id in the config"):
        backend.call(classifier, {"input_ids": IDS})
