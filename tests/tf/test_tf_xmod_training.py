"""X-MOD in Keras: fit of every head, XLA, policies, freezing, saving, export."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tf_models import XMOD_SIZES, build_xmod

from xlmfam import tf as xlm
from xlmfam.tf import xmod_transformer

LM = "XmodForMaskedLM"
RANDOM = np.random.RandomState(3)
IDS = RANDOM.randint(4, 53, (6, 7)).astype("int32")
MASK = (np.arange(7) < np.array([[7], [5], [7], [4], [6], [7]])).astype("int32")
LABELS = np.where(RANDOM.rand(6, 7) < 0.2, IDS, -100).astype("int32")
LABELS[0, 2] = IDS[0, 2]
START, END = np.array([0, 1, 2, 3, 9, 1]), np.array([1, 1, 9, 3, 5, 2])
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "lang_ids": np.array([0, 1, 2, 0, 1, 2])}
BY_TOKEN = {**INPUTS, "lang_ids": np.arange(42).reshape(6, 7) % 3}
CHOICES = {"input_ids": np.stack([IDS, IDS[:, ::-1]], 1), "lang_ids": np.array([[0, 1]] * 6)}
# By class: inputs, labels, options of the config.
HEADS = {
    LM: (INPUTS, {"labels": LABELS}, {}),
    "XmodForCausalLM": (BY_TOKEN, {"labels": IDS}, {"is_decoder": True}),
    "XmodForSequenceClassification": (INPUTS, {"labels": START % 3}, {"num_labels": 3}),
    "XmodForMultipleChoice": (CHOICES, {"labels": START % 2}, {}),
    "XmodForTokenClassification": (
        INPUTS,
        {"labels": np.where(MASK == 1, IDS % 3, -100)},
        {"num_labels": 3},
    ),
    "XmodForQuestionAnswering": (INPUTS, {"start_positions": START, "end_positions": END}, {}),
}


def mean_loss(model, inputs, labels):
    return float(tf.reduce_mean(model(**inputs, **labels).loss))


def adam():
    return keras.optimizers.Adam(5e-3)


@pytest.mark.parametrize("class_name", HEADS)
def test_every_head_fits(class_name):
    inputs, labels, options = HEADS[class_name]
    model = build_xmod(class_name, num_hidden_layers=1, **options)
    model.compile(optimizer=adam(), jit_compile=False)
    losses = [mean_loss(model, inputs, labels)]
    history = model.fit({**inputs, **labels}, epochs=4, batch_size=6, verbose=0)
    losses += history.history["loss"]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[-1] < 0.98 * losses[0]
    model.compile(run_eagerly=True)  # what graphs do, fit has shown
    expected = mean_loss(model, inputs, labels)
    np.testing.assert_allclose(model.evaluate({**inputs, **labels}, verbose=0), expected, rtol=1e-4)
    output = model.predict({**inputs, **labels}, batch_size=4, verbose=0)
    for name, value in model(**inputs, **model._no_cache()).items():
        np.testing.assert_allclose(output[name], value, atol=2e-5, err_msg=name)


def test_languages_that_do_not_occur_stay_and_nobody_is_warned(recwarn):
    model = build_xmod(LM, num_hidden_layers=1)
    model.set_default_language("de_DE")
    model.compile(optimizer=keras.optimizers.AdamW(5e-3, weight_decay=0.1), jit_compile=False)
    free = {n: p for n, p in model.expected_parameters().items() if p.tied_to is None}
    before = {name: model._variable(p).numpy() for name, p in free.items()}
    model.fit({"input_ids": IDS, "labels": LABELS}, batch_size=6, verbose=0)
    changed = {n for n, p in free.items() if (model._variable(p).numpy() != before[n]).any()}
    languages = {free[name].language for name in changed}
    assert languages == {None, "de_DE"}
    assert not [w for w in recwarn if "Gradients do not exist" in str(w.message)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("class_name", "policy_name"),
    [(LM, "mixed_bfloat16"), ("XmodForCausalLM", "float32")],
)
def test_xla_and_recomputing_fit(policy, class_name, policy_name):
    policy(policy_name)
    inputs, labels, options = HEADS[class_name]
    model = build_xmod(class_name, num_hidden_layers=1, **options)
    expected = mean_loss(model, inputs, labels)
    model.gradient_checkpointing_enable()
    model.compile(optimizer=adam(), jit_compile=True)
    data = {**inputs, **labels}
    losses = model.fit(data, epochs=3, batch_size=6, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4 if policy_name == "float32" else 0.05)
    assert losses[-1] < losses[0]
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}


def test_recomputed_gradients_are_equal(monkeypatch):
    came, counted = [], []
    plain = xmod_transformer.recomputed
    monkeypatch.setattr(
        xmod_transformer, "recomputed", lambda *given: counted.append(1) or plain(*given)
    )
    for again in (False, True):
        model = build_xmod(hidden_dropout_prob=0.2, adapter_layer_norm=True)
        if again:
            model.gradient_checkpointing_enable()
        model.roberta.seeds.state.assign([1, 2])
        with tf.GradientTape() as tape:
            output = model(INPUTS, labels=LABELS, training=True)
            loss = tf.reduce_mean(output.loss)
        values = tape.gradient(loss, model.trainable_variables)
        came.append(model.to_canonical(values))
    assert len(counted) == 2  # the layers of the second model
    assert came[0].keys() == came[1].keys()
    for name, value in came[0].items():
        np.testing.assert_allclose(came[1][name], value, atol=1e-5, err_msg=name)


def test_only_where_there_are_labels(monkeypatch):
    model = build_xmod(num_hidden_layers=1)
    rows, project = [], model.project
    monkeypatch.setattr(model, "project", lambda h: rows.append(h.shape[:-1]) or project(h))
    model.compile(optimizer="sgd", run_eagerly=True)
    expected = mean_loss(model, INPUTS, {"labels": LABELS})
    loss = model.evaluate({**INPUTS, "labels": LABELS}, verbose=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert rows == [(6, 7), (int((LABELS != -100).sum()),)]


def test_frozen_variables_stay():
    inputs, labels, options = HEADS["XmodForSequenceClassification"]
    model = build_xmod("XmodForSequenceClassification", num_hidden_layers=1, **options)
    model.freeze_embeddings_and_language_adapters()
    before = model.to_canonical()
    model.compile(optimizer=adam(), run_eagerly=True)
    data = {**inputs, **labels}
    model.fit(data, verbose=0)
    model.train_only_language("sw_KE")
    between = model.to_canonical()
    model.compile(optimizer=adam(), run_eagerly=True)
    model.fit(data, verbose=0)
    after = model.to_canonical()
    for name, value in before.items():
        frozen = "embeddings" in name or "adapter_modules" in name
        assert np.array_equal(value, between[name]) == frozen, name
        learns = "embeddings" in name or "sw_KE" in name
        assert np.array_equal(between[name], after[name]) != learns, name


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "more"),
    [
        (LM, {"pre_norm": True, "tie_word_embeddings": False}),
        ("XmodForCausalLM", {"position_embedding_type": "relative_key_query"}),
        ("XmodModel", {"adapter_layer_norm": True}),
    ],
)
def test_keras_files(class_name, more, tmp_path):
    inputs, labels, options = HEADS.get(class_name, (INPUTS, {}, {}))
    model = build_xmod(class_name, **options, **more)
    model.add_language("fr_XX", "mean")
    model.remove_languages(["de_DE"])
    model.train_only_language("fr_XX")
    inputs = {**inputs, "lang_ids": INPUTS["lang_ids"]}
    if labels:
        model.compile(optimizer=adam(), run_eagerly=True)
        model.fit({**inputs, **labels}, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.config.languages == ["en_XX", "sw_KE", "fr_XX"]
    trained = [[v.path for v in m.trainable_variables] for m in (model, loaded)]
    assert trained[0] == trained[1] != []
    for name, value in model(**inputs, return_dict=True).items():
        if tf.is_tensor(value):
            np.testing.assert_array_equal(loaded(**inputs)[name], value, err_msg=name)
    if labels:
        for old, new in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
            np.testing.assert_array_equal(new, old, err_msg=old.path)
    loaded.add_language("it_IT", "fr_XX")
    came, copied = loaded(IDS, "it_IT")[0], loaded(IDS, "fr_XX")[0]
    np.testing.assert_array_equal(came, copied)


def test_keras_files_of_a_base_without_pooling(tmp_path):
    model = xlm.XmodModel(xlm.XmodConfig(**XMOD_SIZES), add_pooling_layer=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded(IDS, 0).pooler_output is None
    np.testing.assert_array_equal(loaded(IDS, 0)[0], model(IDS, 0)[0])


@pytest.mark.slow
def test_exported_models_serve(tmp_path):
    model = build_xmod(num_hidden_layers=1)
    spec = tf.TensorSpec([None, None], tf.int32)
    signature = [{"input_ids": spec, "attention_mask": spec, "lang_ids": spec}]
    model.export(tmp_path / "words", input_signature=signature)
    served = tf.saved_model.load(str(tmp_path / "words"))
    for langs in (INPUTS["lang_ids"][:, None], BY_TOKEN["lang_ids"]):
        given = {
            "input_ids": tf.constant(IDS),
            "attention_mask": tf.constant(MASK),
            "lang_ids": tf.constant(langs, tf.int32),
        }
        np.testing.assert_allclose(served.serve(given)["logits"], model(**given).logits, atol=2e-5)
