"""The example batches: one for every class, and each asks for all that the class computes."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_checkpoints import make_config

from xlmfam.common.parameters import TABLES, table_of
from xlmfam.conversion.examples import EXAMPLES, LABELS, example_inputs, forward_only

CLASSES = [head for name in TABLES for head in (table_of(name).base, *table_of(name).heads)]
XLM = [name for name in CLASSES if name.startswith("XLM")]


def make_example(head, seed=0, length=12, **settings):
    return example_inputs(make_config(head, **settings), head, seed, length)


def test_every_class_has_an_example():
    assert sorted(EXAMPLES) == sorted(CLASSES)


@pytest.mark.parametrize("head", CLASSES)
def test_all_but_base_models_have_labels(head):
    inputs = make_example(head)
    base = {table_of(name).base for name in TABLES}
    assert (head in base) == (forward_only(inputs).keys() == inputs.keys())
    assert not set(forward_only(inputs)) & set(LABELS)
    again, other = make_example(head), make_example(head, seed=1)
    assert all(np.array_equal(inputs[name], again[name]) for name in inputs)
    assert not np.array_equal(inputs["input_ids"], other["input_ids"])


@pytest.mark.parametrize("head", XLM)
def test_rows_are_padded_on_both_sides_and_mix_languages(head):
    inputs = make_example(head)
    mask = inputs["attention_mask"].reshape(-1, inputs["attention_mask"].shape[-1])
    assert mask[0].all()
    assert (mask[1, 0], mask[1, -1]) == (0, 1)
    assert (mask[2, 0], mask[2, -1]) == (1, 0)
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == 2).all()
    assert inputs["langs"].shape == inputs["input_ids"].shape
    assert {*inputs["langs"].flat} == {0, 1, 2}
    assert not {"langs", "decoder_langs"} & set(make_example(head, n_langs=1))


@pytest.mark.parametrize("head", [name for name in XLM if name != "XLMModel"])
def test_longest_row_fits(head):
    assert make_example(head, max_position_embeddings=5)["input_ids"].shape[-1] == 5


@pytest.mark.parametrize(
    ("settings", "shape", "kind"),
    [
        ({}, (3,), "i"),
        ({"num_labels": 1}, (3, 1), "f"),
        ({"problem_type": "regression"}, (3, 7), "f"),
        ({"problem_type": "multi_label_classification"}, (3, 7), "f"),
        ({"problem_type": "single_label_classification"}, (3,), "i"),
    ],
)
def test_labels_of_texts(settings, shape, kind):
    labels = make_example("XLMForSequenceClassification", **settings)["labels"]
    assert (labels.shape, labels.dtype.kind) == (shape, kind)


def test_choices():
    inputs = make_example("XLMForMultipleChoice")
    assert inputs["input_ids"].shape == (3, 2, 12)
    assert inputs["labels"].shape == (3,)


def test_labels_of_tokens():
    inputs = make_example("XLMForTokenClassification")
    assert (inputs["labels"][inputs["attention_mask"] == 0] == -100).all()
    assert inputs["labels"][0, 6] == -100
    assert inputs["labels"].max() < 7


@pytest.mark.parametrize("seed", range(5))
def test_answers_lie_in_the_text(seed):
    inputs = make_example("XLMForQuestionAnswering", seed)
    rows = np.arange(3)
    for name in ("start_positions", "end_positions", "cls_index"):
        assert inputs["attention_mask"][rows, inputs[name]].all()
    assert (inputs["start_positions"] <= inputs["end_positions"]).all()
    assert {*inputs["is_impossible"]} == {0, 1}
    np.testing.assert_array_equal(inputs["p_mask"], 1 - inputs["attention_mask"])


def test_a_wide_beam_gets_a_text_to_look_in():
    inputs = make_example("XLMForQuestionAnswering", start_n_top=10)
    assert inputs["attention_mask"].sum(-1).min() >= 10


def test_a_translation_has_two_texts():
    inputs = make_example("XLMEncoderDecoder")
    assert inputs["input_ids"].shape == (3, 12)
    assert inputs["decoder_input_ids"].shape == inputs["labels"].shape == (3, 9)
    target, labels = inputs["decoder_input_ids"][:, 1:], inputs["labels"][:, :-1]
    real = labels != -100
    np.testing.assert_array_equal(labels[real], target[real])
