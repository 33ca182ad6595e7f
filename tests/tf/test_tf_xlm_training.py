"""XLM in Keras: fit of every head, labelled positions, XLA, policies, saving, export."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tf_models import build_xlm

from xlmfam.common.errors import XlmfamError

LM = "XLMWithLMHeadModel"
RANDOM = np.random.RandomState(3)
IDS = RANDOM.randint(6, 53, (6, 7)).astype("int32")
MASK = (np.arange(7) < np.array([[7], [5], [7], [4], [6], [7]])).astype("int32")
LABELS = np.where(RANDOM.rand(6, 7) < 0.2, IDS, -100).astype("int32")
LABELS[0, 2] = IDS[0, 2]
START, END = np.array([0, 1, 2, 3, 9, 1]), np.array([1, 1, 9, 3, 5, 2])
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "langs": np.array([0, 1, 2, 0, 1, 2])}
CHOICES = {"input_ids": np.stack([IDS, IDS[:, ::-1]], 1), "langs": np.array([[0, 1]] * 6)}
# By class: inputs, labels, options of the config.
HEADS = {
    LM: (INPUTS, {"labels": LABELS}, {}),
    "XLMForSequenceClassification": (INPUTS, {"labels": START % 3}, {"num_labels": 3}),
    "XLMForMultipleChoice": (CHOICES, {"labels": START % 2}, {"num_labels": 1}),
    "XLMForTokenClassification": (
        INPUTS,
        {"labels": np.where(MASK == 1, IDS % 3, -100)},
        {"num_labels": 3},
    ),
    "XLMForQuestionAnsweringSimple": (
        INPUTS,
        {"start_positions": START, "end_positions": END},
        {},
    ),
    "XLMForQuestionAnswering": (
        {**INPUTS, "cls_index": np.zeros(6, "int32"), "p_mask": 1.0 - MASK},
        {
            "start_positions": START % 4,
            "end_positions": END % 4,
            "is_impossible": (START % 2).astype("float32"),
        },
        {"start_n_top": 2, "end_n_top": 3},
    ),
}


def mean_loss(model, inputs, labels):
    return float(tf.reduce_mean(model(**inputs, **labels).loss))


def adam():
    return keras.optimizers.Adam(5e-3)


@pytest.mark.parametrize("class_name", HEADS)
def test_every_head_fits(class_name):
    inputs, labels, options = HEADS[class_name]
    model = build_xlm(class_name, n_layers=1, **options)
    model.compile(optimizer=adam())
    losses = [mean_loss(model, inputs, labels)]
    history = model.fit({**inputs, **labels}, epochs=4, batch_size=6, verbose=0)
    losses += history.history["loss"]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[-1] < 0.98 * losses[0]
    model.compile(run_eagerly=True)  # what graphs do, fit has shown
    expected = mean_loss(model, inputs, labels)
    np.testing.assert_allclose(model.evaluate({**inputs, **labels}, verbose=0), expected, rtol=1e-4)
    output = model.predict({**inputs, **labels}, batch_size=4, verbose=0)
    for name, value in model(**inputs).items():
        np.testing.assert_allclose(output[name], value, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("class_name", ["XLMForQuestionAnswering", "XLMForSequenceClassification"])
def test_labels_as_y(class_name):
    inputs, labels, options = HEADS[class_name]
    model = build_xlm(class_name, **options)
    model.compile(optimizer="sgd", run_eagerly=True)
    expected = mean_loss(model, inputs, labels)
    forms = [labels, list(labels.values())] if len(labels) > 1 else [labels, *labels.values()]
    for form in forms:
        x = tf.data.Dataset.from_tensors((inputs, tuple(form) if isinstance(form, list) else form))
        np.testing.assert_allclose(model.evaluate(x, verbose=0), expected, rtol=1e-4)
    with pytest.raises(XlmfamError, match="in the inputs or as y"):
        model.evaluate(inputs, verbose=0)
    if len(labels) > 1:
        with pytest.raises(XlmfamError, match="needs end_positions too"):
            model.evaluate(inputs, {"start_positions": START % 4}, verbose=0)


def test_sample_weights():
    for class_name in (LM, "XLMForSequenceClassification", "XLMForQuestionAnswering"):
        inputs, labels, options = HEADS[class_name]
        model = build_xlm(class_name, **options)
        model.compile(optimizer="sgd", run_eagerly=True)
        weights = np.array([1.0, 0, 0, 0, 0, 0], "float32")
        y = labels if len(labels) > 1 else labels["labels"]
        came = model.evaluate(inputs, y, sample_weight=weights, batch_size=6, verbose=0)
        first = {name: value[:1] for name, value in inputs.items()}
        alone = np.asarray(model(**first, **{n: v[:1] for n, v in labels.items()}).loss)
        counted = (LABELS != -100).sum() if class_name == LM else 6
        np.testing.assert_allclose(came, alone.sum() / counted, rtol=1e-4, err_msg=class_name)


def test_metrics_of_questions_and_of_words():
    inputs, labels, options = HEADS["XLMForQuestionAnsweringSimple"]
    model = build_xlm("XLMForQuestionAnsweringSimple", **options)
    inside = {name: value % 7 for name, value in labels.items()}
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        loss=dict.fromkeys(labels, sparse),
        metrics={"start_positions": "accuracy"},
        run_eagerly=True,
    )
    results = model.evaluate(inputs, inside, return_dict=True, verbose=0)
    right = np.asarray(model(**inputs).start_logits).argmax(-1) == inside["start_positions"]
    np.testing.assert_allclose(results["start_positions_accuracy"], right.mean(), rtol=1e-5)
    np.testing.assert_allclose(results["loss"], 2 * mean_loss(model, inputs, inside), rtol=1e-4)
    words = build_xlm()
    words.compile(metrics=["accuracy"], run_eagerly=True)  # the loss is the model's own
    results = words.evaluate(INPUTS, IDS, return_dict=True, verbose=0)
    right = np.asarray(words(**INPUTS).logits).argmax(-1) == IDS
    np.testing.assert_allclose(results["accuracy"], right.mean(), rtol=1e-5)
    expected = mean_loss(words, INPUTS, {"labels": IDS})
    np.testing.assert_allclose(results["loss"], expected, rtol=1e-4)


# ---- labelled positions only ----------------------------------------------------------------


def after_a_step(monkeypatch, labels=LABELS, options=None, **settings):
    """Return the loss of a step, the parameters after it, and how many rows were projected."""
    model = build_xlm(**(options or {}))
    for name, value in settings.items():
        setattr(model, name, value)
    rows, project = [], model.project
    monkeypatch.setattr(model, "project", lambda h: rows.append(h.shape[:-1]) or project(h))
    model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    loss = model.fit({**INPUTS, "labels": labels}, batch_size=6, verbose=0).history["loss"][0]
    return loss, model.to_canonical(), rows


@pytest.mark.parametrize("options", [{}, {"causal": True}])
def test_fit_projects_where_there_are_labels(monkeypatch, options):
    whole = after_a_step(monkeypatch, options=options, labelled_logits_only=False)
    assert whole[2] == [(6, 7)]
    count = int((LABELS[:, 1:] if options else LABELS).astype(int).__ne__(-100).sum())
    for setting, rows in ((True, count), (20, 20)):
        some = after_a_step(monkeypatch, options=options, labelled_logits_only=setting)
        assert some[2] == [(rows,)]
        np.testing.assert_allclose(some[0], whole[0], rtol=1e-5)
        for name, value in whole[1].items():
            np.testing.assert_allclose(some[1][name], value, atol=1e-5, err_msg=name)


def test_fit_with_too_little_room_is_seen(monkeypatch):
    with pytest.raises(XlmfamError, match="labelled_logits_only=2, and there are"):
        after_a_step(monkeypatch, labelled_logits_only=2)
    model = build_xlm()
    model.labelled_logits_only = 2
    model.compile(optimizer="sgd")
    assert np.isnan(model.fit({**INPUTS, "labels": LABELS}, verbose=0).history["loss"][0])


def test_nothing_to_learn_from(monkeypatch):
    before = build_xlm().to_canonical()
    for setting in (True, False, 4):
        nothing = np.full_like(LABELS, -100)
        loss, after, _ = after_a_step(monkeypatch, nothing, labelled_logits_only=setting)
        assert loss == 0
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    inputs, labels, _ = HEADS["XLMForQuestionAnsweringSimple"]
    model = build_xlm("XLMForQuestionAnsweringSimple")
    model.compile(optimizer="sgd", run_eagerly=True)
    outside = {name: np.full(6, 9) for name in labels}
    assert model.fit({**inputs, **outside}, verbose=0).history["loss"] == [0.0]
    assert np.isfinite(model.qa_outputs.kernel).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("class_name", "policy_name"),
    [(LM, "float32"), (LM, "mixed_bfloat16"), ("XLMForQuestionAnswering", "float32")],
)
def test_xla_and_recomputing_fit(policy, class_name, policy_name):
    policy(policy_name)
    inputs, labels, options = HEADS[class_name]
    model = build_xlm(class_name, n_layers=1, **options)
    model.labelled_logits_only = 16
    expected = mean_loss(model, inputs, labels)
    model.gradient_checkpointing_enable()
    model.compile(optimizer=adam(), jit_compile=True)
    data = {**inputs, **labels}
    losses = model.fit(data, epochs=3, batch_size=6, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4 if policy_name == "float32" else 0.05)
    assert losses[-1] < losses[0]
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}


def test_words_that_come_twice_are_one_gradient():
    """Keras's Adam would square the rows of repeated ids one by one."""
    model = build_xlm("XLMForTokenClassification", num_labels=3)
    ids = tf.constant([[7, 7, 7, 9]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(ids, langs=1, labels=tf.constant([[0, 1, 2, 0]])).loss)
    for variable, value in zip(
        model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True
    ):
        assert not isinstance(value, tf.IndexedSlices), variable.path
        assert value.shape == variable.shape


# ---- translation ----------------------------------------------------------------------------


def test_translation_fits():
    model = build_xlm("XLMEncoderDecoder")
    model.compile(optimizer=adam(), run_eagerly=True)
    languages = {"langs": np.zeros(6, int), "decoder_langs": np.ones(6, int)}
    data = {"input_ids": IDS, "attention_mask": MASK, **languages}
    expected = mean_loss(model, data, {"labels": IDS[:, :5]})
    losses = model.fit(data, IDS[:, :5], epochs=3, batch_size=6, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4)
    assert losses[-1] < losses[0]


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "more"),
    [
        (LM, {"asm": True, "asm_cutoffs": [9, 30], "sinusoidal_embeddings": True}),
        ("XLMForQuestionAnswering", {}),
        ("XLMEncoderDecoder", {}),
    ],
)
def test_keras_files(class_name, more, tmp_path):
    inputs, _, options = HEADS.get(class_name, (INPUTS, None, {}))
    if class_name == "XLMEncoderDecoder":
        inputs = {**inputs, "decoder_input_ids": IDS[:, :4]}
    else:
        more = {**more, "causal": True}
    model = build_xlm(class_name, **options, **more)
    if class_name == "XLMForQuestionAnswering":
        model.prune_heads({1: [0, 2]})
        model.compile(optimizer=adam(), run_eagerly=True)
        model.fit({**inputs, **HEADS[class_name][1]}, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    for name, value in model(**inputs).items():
        np.testing.assert_array_equal(loaded(**inputs)[name], value, err_msg=name)
    if getattr(model, "optimizer", None):
        for old, new in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
            np.testing.assert_array_equal(new, old, err_msg=old.path)


@pytest.mark.slow
def test_exported_models_serve(tmp_path):
    model = build_xlm()
    model.export(tmp_path / "words")
    served = tf.saved_model.load(str(tmp_path / "words"))
    given = {name: tf.constant(INPUTS[name]) for name in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(served.serve(given)["logits"], model(**given).logits, atol=2e-5)
    choice = build_xlm("XLMForMultipleChoice")
    choice.export(tmp_path / "choices")
    served = tf.saved_model.load(str(tmp_path / "choices"))
    ids = tf.constant(CHOICES["input_ids"])
    given = {"input_ids": ids, "attention_mask": tf.ones_like(ids)}
    np.testing.assert_allclose(served.serve(given)["logits"], choice(**given).logits, atol=2e-5)
