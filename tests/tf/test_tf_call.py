"""The documented call: inputs in every form, caches, dtypes, errors before any compute."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tf_models import randomised, tiny_config

from xlmfam.common.errors import XlmfamError
from xlmfam.tf import KeyValueCache, TFXGLMModel, XGLMForCausalLM, XGLMModel


def logits(output):
    return np.asarray(output.logits)


def test_first_argument_may_be_a_dict_a_list_or_a_tensor(shared_model, batch):
    expected = logits(shared_model(**batch))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for first in (batch, [ids, mask], (tf.constant(ids, tf.int32), mask)):
        np.testing.assert_array_equal(logits(shared_model(first)), expected)
    np.testing.assert_array_equal(logits(shared_model(ids, attention_mask=mask)), expected)
    np.testing.assert_array_equal(logits(shared_model(ids, mask)), expected)
    assert isinstance(shared_model(batch, return_dict=False), tuple)
    flags = {**batch, "use_cache": False, "output_hidden_states": True}
    assert shared_model(flags).past_key_values is None


def test_inputs_are_never_changed(shared_model, batch):
    positions = np.arange(7)[None].repeat(2, 0)
    before = {name: value.copy() for name, value in batch.items()}
    shared_model(**batch, position_ids=positions, labels=batch["input_ids"])
    np.testing.assert_array_equal(positions, np.arange(7)[None].repeat(2, 0))
    for name, value in batch.items():
        np.testing.assert_array_equal(value, before[name])


def test_padding_on_either_side_changes_nothing(shared_model):
    ids = np.array([[5, 6, 7, 8]])
    alone = logits(shared_model(ids))[0]
    left = np.array([[1, 1, 5, 6, 7, 8]])
    right = np.array([[5, 6, 7, 8, 1, 1]])
    padded = logits(shared_model(left, attention_mask=(left != 1).astype("int64")))[0, 2:]
    np.testing.assert_allclose(padded, alone, atol=2e-5)
    padded = logits(shared_model(right, attention_mask=right != 1))[0, :4]
    np.testing.assert_allclose(padded, alone, atol=2e-5)


def test_both_caches_continue_like_the_whole(shared_model, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    whole = logits(shared_model(**batch))
    first = shared_model(ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
    rest = shared_model(
        ids[:, 4:], attention_mask=mask, past_key_values=first.past_key_values, use_cache=True
    )
    np.testing.assert_allclose(logits(rest), whole[:, 4:], atol=2e-5)
    assert rest.past_key_values[1][0].shape == (2, 3, 7, 4)

    cache = shared_model.init_cache(2, 9)
    out = shared_model(ids[:, :4], attention_mask=mask[:, :4], past_key_values=cache)
    assert int(cache.length) == 0  # the caller's stays as it was
    cache = out.past_key_values
    assert isinstance(cache, KeyValueCache)
    assert int(cache.length) == 4
    rest = shared_model(ids[:, 4:], attention_mask=mask, past_key_values=cache)
    np.testing.assert_allclose(logits(rest), whole[:, 4:], atol=2e-5)


def test_graph_with_unknown_sizes_and_caches(shared_model, batch):
    spec = tf.TensorSpec((None, None), tf.int32)

    @tf.function(input_signature=[spec, spec])
    def both(ids, mask):
        first = shared_model(ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
        past = first.past_key_values
        return shared_model(ids[:, 4:], attention_mask=mask, past_key_values=past)

    ids = tf.constant(batch["input_ids"], tf.int32)
    mask = tf.constant(batch["attention_mask"], tf.int32)
    expected = logits(shared_model(**batch))[:, 4:]
    np.testing.assert_allclose(logits(both(ids, mask)), expected, atol=2e-5)
    np.testing.assert_allclose(logits(both(ids[1:], mask[1:])), expected[1:], atol=2e-5)


def test_xla_gives_the_same(shared_model, batch):
    compiled = tf.function(lambda ids, mask: shared_model([ids, mask]), jit_compile=True)
    output = compiled(tf.constant(batch["input_ids"]), tf.constant(batch["attention_mask"]))
    np.testing.assert_allclose(logits(output), logits(shared_model(**batch)), atol=2e-5)


def test_outputs_are_structures(shared_model, batch):
    output = shared_model(**batch, output_hidden_states=True, use_cache=False)
    for structure in (tf.nest, keras.tree):
        twice = structure.map_structure(lambda x: x * 2, output)
        assert type(twice) is type(output)
        assert twice.past_key_values is None
        np.testing.assert_array_equal(twice.hidden_states[1], output.hidden_states[1] * 2)
        flat = structure.flatten(output)
        again = structure.pack_sequence_as(output, flat)
        assert list(again) == list(output)
    assert output[0] is output.logits is output["logits"]


def test_functional_models_can_contain_it(shared_model, batch):
    ids = keras.Input((None,), dtype="int32")
    functional = keras.Model(ids, shared_model(ids, use_cache=False).logits * 2)
    expected = logits(shared_model(batch["input_ids"])) * 2
    np.testing.assert_allclose(functional(batch["input_ids"]), expected, atol=1e-5)


def test_loss_is_per_label_and_its_mean_ignores_what_does_not_count(shared_model, batch):
    labels = batch["input_ids"].copy()
    labels[:, :4] = -100
    output = shared_model(**batch, labels=labels)
    assert output.loss.shape == (6,)
    log_softmax = np.asarray(tf.nn.log_softmax(output.logits))
    wanted = [-log_softmax[row, i - 1, labels[row, i]] for row in (0, 1) for i in (4, 5, 6)]
    np.testing.assert_allclose(output.loss, wanted, rtol=1e-4)


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_narrow_dtypes_are_finite_under_padding(name, batch):
    model = XGLMForCausalLM(tiny_config(), dtype=name)
    compute = "bfloat16" if "bfloat16" in name else "float16"
    assert model.variable_dtype == ("float32" if "mixed" in name else compute)
    output = model(**batch, labels=batch["input_ids"], output_attentions=True)
    assert output.logits.dtype == compute
    for value in tf.nest.flatten(output):
        assert bool(tf.reduce_all(tf.math.is_finite(value)))


def test_narrow_norms_keep_their_statistics_wide(policy):
    policy("mixed_float16")
    layer = XGLMModel(tiny_config()).model.layer_norm
    values = tf.constant(np.random.RandomState(0).normal(300, 1, (3, 12)), tf.float16)
    wide = tf.cast(values, tf.float32).numpy()
    wanted = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer(values), wanted, atol=2e-2)


def test_dropout_and_layerdrop_act_in_training_only(batch):
    config = tiny_config(dropout=0.5, attention_dropout=0.5, activation_dropout=0.5)
    model = randomised(XGLMForCausalLM(config))
    assert np.array_equal(logits(model(**batch)), logits(model(**batch)))
    drawn = [logits(model(**batch, training=True)) for _ in range(2)]
    assert not np.allclose(*drawn)

    config = tiny_config(dropout=0.0, attention_dropout=0.0, layerdrop=1.0)
    model = randomised(XGLMForCausalLM(config))
    states = model(**batch, training=True, output_hidden_states=True).hidden_states
    np.testing.assert_array_equal(states[0], states[1])
    states = model(**batch, output_hidden_states=True).hidden_states
    assert not np.allclose(states[0], states[1])


def test_seeds_repeat_dropout(batch):
    drawn = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        model = XGLMForCausalLM(tiny_config(dropout=0.5))
        drawn.append(logits(model(**batch, training=True)))
    np.testing.assert_array_equal(*drawn)


def test_recomputed_gradients_are_the_same_even_with_dropout(batch):
    gradients = []
    for recompute in (False, True):
        keras.utils.set_random_seed(5)
        model = XGLMForCausalLM(tiny_config(dropout=0.3, attention_dropout=0.3))
        if recompute:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(**batch, labels=batch["input_ids"], training=True).loss)
        values = tape.gradient(loss, [v.value for v in model.trainable_variables])
        gradients.append(model.to_canonical(values))
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], gradient, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": np.array([5, 6])}, "batch, sequence"),
        ({"input_ids": np.array([[5, 37]])}, "37, outside the vocabulary of 37"),
        ({"input_ids": np.array([[5, -1]])}, "-1, outside"),
        ({"input_ids": np.array([[5.0, 6.0]])}, "must hold integers"),
        ({"input_ids": np.ones((1, 2), int), "attention_mask": np.ones((1, 3))}, "attention_mask"),
        ({"input_ids": np.ones((1, 2), int), "position_ids": np.ones((1, 3))}, "position_ids"),
        ({"input_ids": np.ones((1, 2), int), "labels": np.ones((1, 3), int)}, "labels"),
        ({"input_ids": np.ones((1, 2), int), "head_mask": np.ones((2, 4))}, "head_mask"),
        ({"inputs_embeds": np.ones((1, 2, 5), "float32")}, "inputs_embeds"),
        (
            {
                "input_ids": np.ones((1, 2), int),
                "encoder_hidden_states": np.ones((1, 2, 12), "float32"),
            },
            "add_cross_attention",
        ),
        ({"input_ids": np.ones((1, 2), int), "colour": 1}, "takes no colour"),
    ],
)
def test_mistakes_are_named(shared_model, arguments, message):
    with pytest.raises(XlmfamError, match=message):
        shared_model(**arguments)


def test_base_model_shares_a_given_embedding(shared_model, batch):
    base = TFXGLMModel(shared_model.config, embed_tokens=shared_model.get_input_embeddings())
    table = shared_model.get_input_embeddings().embeddings
    assert base.get_input_embeddings().embeddings is table
    assert base(batch).last_hidden_state.shape == (2, 7, 12)
