"""Keras: fit, evaluate, predict, losses, metrics, callbacks, policies, XLA, saving, export."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tf_models import randomised, tiny_config

from xlmfam.common.errors import XlmfamError
from xlmfam.tf import XGLMForCausalLM, XGLMModel


@pytest.fixture(scope="module")
def text():
    """Eight rows that a small model learns: each token follows from the one before."""
    start = np.arange(8)[:, None] % 5
    return (4 + (start + np.arange(10)[None]) % 5).astype("int32")


def own_loss(model, ids):
    return float(tf.reduce_mean(model(ids, labels=ids).loss))


def adam():
    return keras.optimizers.Adam(1e-2)


def test_fit_without_a_loss_learns(model, text):
    model.compile(optimizer=adam())
    history = model.fit({"input_ids": text, "labels": text}, epochs=12, batch_size=4, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    evaluated = model.evaluate({"input_ids": text, "labels": text}, verbose=0)
    np.testing.assert_allclose(evaluated, own_loss(model, text), rtol=1e-4)


def test_every_form_of_data_gives_the_same_step(model, text):
    weights = [w.numpy() for w in model.trainable_variables]
    inputs = {"input_ids": text}
    forms = {
        "dict": ({**inputs, "labels": text},),
        "pair": (inputs, text),
        "arrays": (text, text),
        "list": ([text, np.ones_like(text)], text),
        "labels as a dict": (inputs, {"labels": text}),
        "tf.data": (tf.data.Dataset.from_tensor_slices({**inputs, "labels": text}).batch(8),),
        "tf.data pairs": (tf.data.Dataset.from_tensor_slices((inputs, text)).batch(8),),
    }
    expected = None
    for name, form in forms.items():
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value)
        model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
        loss = model.fit(*form, batch_size=8, verbose=0).history["loss"][0]
        after = model.trainable_variables[3].numpy()
        if expected is None:
            expected = loss, after
        np.testing.assert_allclose(loss, expected[0], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(after, expected[1], atol=1e-6, err_msg=name)


def test_loss_and_metrics_of_compile_see_logits(model, text):
    model.compile(
        optimizer=adam(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    targets = np.roll(text, -1, 1)
    history = model.fit({"input_ids": text}, targets, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    loss, accuracy = model.evaluate({"input_ids": text}, targets, verbose=0)
    logits = np.asarray(model(text).logits)
    np.testing.assert_allclose(accuracy, (logits.argmax(-1) == targets).mean(), atol=1e-6)
    wanted = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    np.testing.assert_allclose(loss, np.mean(wanted), rtol=1e-4)


def test_sample_weights_choose_rows_and_labels(model, text):
    model.compile(optimizer=adam(), run_eagerly=True)
    rows = np.array([1.0] * 4 + [0.0] * 4, "float32")
    halved = model.evaluate({"input_ids": text}, text, sample_weight=rows, verbose=0)
    np.testing.assert_allclose(halved, own_loss(model, text[:4]) / 2, rtol=1e-4)
    tokens = np.zeros((8, 10), "float32")
    tokens[:, 3] = 1
    chosen = model.evaluate({"input_ids": text}, text, sample_weight=tokens, verbose=0)
    only = np.where(tokens > 0, text, -100)
    np.testing.assert_allclose(chosen * 9, float(np.mean(model(text, labels=only).loss)), rtol=1e-4)


def test_fit_needs_labels(model, text):
    model.compile(optimizer=adam(), run_eagerly=True)
    with pytest.raises(XlmfamError, match="labels"):
        model.fit({"input_ids": text}, verbose=0)
    base = XGLMModel(tiny_config())
    base.compile(optimizer=adam(), run_eagerly=True)
    with pytest.raises(XlmfamError, match="XGLMModel has no loss"):
        base.fit({"input_ids": text}, text, verbose=0)


def test_ignored_labels_do_not_train(model, text):
    labels = np.full_like(text, -100)
    before = [w.numpy() for w in model.trainable_variables]
    model.compile(optimizer=keras.optimizers.SGD(1.0), run_eagerly=True)
    model.fit({"input_ids": text, "labels": labels}, verbose=0)
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


@pytest.mark.slow
def test_xla_and_recomputing_train_the_same(text):
    histories = []
    for jit, recompute in ((False, False), (True, False), (True, True)):
        config = tiny_config(dropout=0.0, attention_dropout=0.0)
        model = randomised(XGLMForCausalLM(config))
        if recompute:
            model.gradient_checkpointing_enable()
        model.compile(optimizer=adam(), jit_compile=jit)
        data = {"input_ids": text, "labels": text}
        histories.append(model.fit(data, epochs=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-4)
    np.testing.assert_allclose(histories[2], histories[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_learns(policy, name, text):
    policy(name)
    model = randomised(XGLMForCausalLM(tiny_config(layerdrop=0.1)))
    model.compile(optimizer=adam(), jit_compile=True)
    data = {"input_ids": text, "labels": text}
    losses = model.fit(data, epochs=15, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


def test_predict_joins_batches(model, text):
    output = model.predict({"input_ids": text, "labels": text}, batch_size=3, verbose=0)
    assert isinstance(output.logits, np.ndarray)
    assert output.past_key_values is None
    np.testing.assert_allclose(output.logits, model(text).logits, atol=2e-5)
    states = model.predict(text, verbose=0)
    np.testing.assert_allclose(states.logits, output.logits, atol=2e-5)


def test_callbacks_and_weight_files(model, text, tmp_path):
    model.compile(optimizer=adam())
    data = {"input_ids": text, "labels": text}
    path = tmp_path / "best.weights.h5"
    model.fit(
        data,
        validation_data=(data, None) if False else ({"input_ids": text}, text),
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=1),
            keras.callbacks.ModelCheckpoint(path, save_weights_only=True),
        ],
    )
    other = XGLMForCausalLM(model.config)
    other.load_weights(path)
    np.testing.assert_array_equal(other(text).logits, model(text).logits)


def test_keras_files_hold_model_options_and_optimizer(model, text, tmp_path):
    model.generation_config = model.generation_config.update(num_beams=3)
    model.compile(optimizer=adam())
    model.fit({"input_ids": text, "labels": text}, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is XGLMForCausalLM
    assert loaded.config == model.config
    assert loaded.generation_config.num_beams == 3
    np.testing.assert_array_equal(loaded(text).logits, model(text).logits)
    losses = [
        m.fit({"input_ids": text, "labels": text}, shuffle=False, verbose=0).history["loss"]
        for m in (model, loaded)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_cloned_from_its_config(shared_model):
    clone = XGLMForCausalLM.from_config(shared_model.get_config())
    assert clone.config == shared_model.config
    assert clone.count_params() == shared_model.count_params() == shared_model.num_parameters()


@pytest.mark.slow
def test_exported_model_serves(model, batch, tmp_path):
    model.export(tmp_path / "saved")
    served = tf.saved_model.load(str(tmp_path / "saved"))
    inputs = {name: tf.constant(value, tf.int32) for name, value in batch.items()}
    output = served.serve(inputs)
    np.testing.assert_allclose(output["logits"], model(**batch).logits, atol=2e-5)


@pytest.mark.slow
def test_exported_model_serves_a_given_signature(model, batch, tmp_path):
    ids = tf.constant(batch["input_ids"], tf.int32)
    signature = [{"input_ids": tf.TensorSpec((None, None), tf.int32)}]
    model.export(tmp_path / "saved", input_signature=signature)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(
        saved.serve({"input_ids": ids})["logits"], model(ids).logits, atol=2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mirrored", "one device"])
def test_distribution_strategies(kind, text):
    device = "/cpu:0"
    strategy = (
        tf.distribute.MirroredStrategy([device])
        if kind == "mirrored"
        else tf.distribute.OneDeviceStrategy(device)
    )
    with strategy.scope():
        model = XGLMForCausalLM(tiny_config())
        model.compile(optimizer=adam())
    losses = model.fit({"input_ids": text, "labels": text}, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_weight_decay_leaves_biases_and_norms(model, text):
    optimizer = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    model.exclude_from_weight_decay(optimizer)
    optimizer.build(model.trainable_variables)
    before = model.to_canonical()
    optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables])
    after = model.to_canonical()
    for name, value in before.items():
        shrunk = not np.array_equal(value, after[name])
        assert shrunk == (name in model.decay_parameters()), name
