"""Transformer-XL in Keras: padding, projected memory, graphs, training, vocabularies, evaluation.

The numbers of the reference are compared with elsewhere, see tests/equivalence.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tf_models import randomised
from tolerances import LAYER, MODEL

from xlmfam import tf as xlm
from xlmfam.common.errors import XlmfamError
from xlmfam.tf import TransfoXLConfig, transfo_xl_transformer
from xlmfam.tf.transfo_xl_memory import ProjectedMemory

LM = "TransfoXLLMHeadModel"
SIZES = {
    "vocab_size": 53,
    "cutoffs": [11, 28],
    "d_model": 18,
    "d_embed": 12,
    "div_val": 2,
    "n_head": 3,
    "d_head": 5,
    "d_inner": 22,
    "n_layer": 2,
    "mem_len": 7,
    "clamp_len": 5,
    "dropout": 0.0,
    "dropatt": 0.0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
ONE_WIDTH = {"div_val": 1, "d_embed": 18, "clamp_len": -1, "same_length": False}
GROWING = {"same_length": False, "clamp_len": -1, "pre_lnorm": True, "untie_r": False}
UNTIED = {"tie_word_embeddings": False, "proj_share_all_but_first": False}


def build(class_name=LM, seed=0, dtype=None, **options):
    config = TransfoXLConfig(**{**SIZES, **options})
    model = randomised(getattr(xlm, class_name)(config, dtype=dtype), seed)
    for variable in model.trainable_variables:
        if variable.name == "gamma":
            variable.assign_add(tf.ones_like(variable))
    return model


def error(came, expected):
    came, expected = np.asarray(came, np.float64), np.asarray(expected, np.float64)
    assert came.shape == expected.shape
    return np.abs(came - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def shared():
    """A language model that no test may change."""
    return build()


@pytest.fixture(scope="module")
def growing():
    return build(**GROWING)


@pytest.fixture(scope="module")
def ids():
    return tf.constant(np.random.RandomState(1).randint(1, 53, (3, 9)))


@pytest.fixture(scope="module")
def padded(ids):
    """Three rows of nine, six and one token."""
    mask = (np.arange(9) >= np.array([[0], [3], [8]])).astype("int32")
    return {"input_ids": ids * mask, "attention_mask": tf.constant(mask)}


def memories(model, batch=3):
    """Mems of a first text."""
    first = np.random.RandomState(5).randint(1, 53, (batch, 8))
    return model(tf.constant(first)).mems


def rows_of(mems, row):
    return None if mems is None else [memory[:, row : row + 1] for memory in mems]


# ---- padding --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["shared", "growing"])
@pytest.mark.parametrize("after", [False, True], ids=["first", "with mems"])
def test_a_padded_batch_is_each_row_alone(request, padded, which, after):
    model = request.getfixturevalue(which)
    mems = memories(model) if after else None
    together = model(**padded, mems=mems)
    ring = None if after else model.init_cache(3, 9)
    by_ring = None if after else model(**padded, mems=ring)
    run = tf.function(lambda i, m: dict(model(i, attention_mask=m, mems=mems)), autograph=False)
    in_graph = run(padded["input_ids"], padded["attention_mask"])
    for row, first in enumerate([0, 3, 8]):
        text = padded["input_ids"][row : row + 1, first:]
        alone = model(text, mems=rows_of(mems, row))
        outputs = [together, in_graph] if after else [together, in_graph, by_ring]
        for output in outputs:
            came = output["prediction_scores"][row, first:]
            assert error(came, alone.prediction_scores[0]) < MODEL
        for came, in_it, expected in zip(together.mems, in_graph["mems"], alone.mems, strict=True):
            assert error(came[:, row], expected[:, 0]) < MODEL
            assert error(in_it[:, row], expected[:, 0]) < MODEL
        if not after:  # the ring goes on as the row alone does
            more = padded["input_ids"][:, :2]
            onward = model(more, mems=by_ring.mems).prediction_scores[row]
            expected = model(more[row : row + 1], mems=alone.mems).prediction_scores[0]
            assert error(onward, expected) < MODEL


def test_padded_labels(shared, padded, ids):
    labels = tf.where(padded["attention_mask"] == 1, ids, -100)[:2]
    inputs = {name: value[:2] for name, value in padded.items()}
    losses = shared(**inputs, labels=labels).losses
    alone = shared(ids[1:2, 3:], labels=ids[1:2, 3:]).losses
    assert error(losses[1, 3:], alone[0]) < MODEL
    assert (losses[1, :2].numpy() == 0).all()


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_of_a_padded_batch_is_that_of_its_rows(shared, padded, beams):
    mems = memories(shared)
    options = {"max_new_tokens": 9, "num_beams": beams}
    together = shared.generate(**padded, mems=mems, **options).numpy()
    for row, first in enumerate([0, 3, 8]):
        text = padded["input_ids"][row : row + 1, first:]
        alone = shared.generate(text, mems=rows_of(mems, row), **options).numpy()
        assert together[row, 9:].tolist() == alone[0, 9 - first :].tolist()


def test_beams_without_a_cache(shared, ids):
    options = {"max_new_tokens": 9, "num_beams": 3, "mems": memories(shared)}
    came = shared.generate(ids, use_cache=False, **options)
    assert came.numpy().tolist() == shared.generate(ids, **options).numpy().tolist()


# ---- projected memory -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, ONE_WIDTH, GROWING, {"mem_len": 0}])
def test_projected_memory_is_recomputing(options):
    model = build(**options)
    text = np.random.RandomState(7).randint(1, 53, (2, 40))
    room = 4
    cache, mems, at = model.init_cache(2, room), None, 0
    step = tf.function(lambda ids, cache: dict(model(ids, mems=cache)), autograph=False)
    for size in [1, 3, 4] + [1] * 16 + [2, 4, 4]:  # around the ring more than once
        piece = tf.constant(text[:, at : at + size])
        expected = model(piece, mems=mems)
        runs = step if size == 1 else lambda ids, cache: model(ids, mems=cache)
        output = runs(piece, cache)
        came, cache, mems = output["prediction_scores"], output["mems"], expected.mems
        assert error(came, expected.prediction_scores) < LAYER
        at += size
    assert isinstance(cache, ProjectedMemory)
    assert at > 3 * (model.config.mem_len + room) or not model.config.mem_len


@pytest.mark.parametrize("which", ["shared", "growing"])
def test_generation_is_reading_on_with_mems(request, ids, which):
    model = request.getfixturevalue(which)
    mems = [memory[-4:] for memory in memories(model, 1)] if which == "growing" else None
    came = model.generate(ids[:1], mems=mems, max_new_tokens=20)[0].numpy()  # around the ring
    piece = ids[:1]
    for token in came[9:]:
        output = model(piece, mems=mems)
        assert int(tf.argmax(output.prediction_scores[0, -1])) == token
        piece, mems = tf.constant([[token]], ids.dtype), output.mems


def test_clusters_that_cannot_win_are_skipped_and_tokens_stay(shared, ids, monkeypatch):
    looked = []
    tail = type(shared.crit).tail
    monkeypatch.setattr(
        type(shared.crit), "tail", lambda self, c, *given: looked.append(c) or tail(self, c, *given)
    )
    states = tf.constant(np.random.RandomState(2).normal(0, 3, (2000, 18)), tf.float32)
    words = shared.transformer.word_emb
    scores = shared.crit(states, words).numpy()
    reach = np.log(np.exp(scores[:, 28:]).sum(1))
    lead = reach - scores[:, :28].max(1)
    wins = scores.argmax(1) >= 28
    # The last cluster wins although it is hardly likelier than a word; and it nearly could win.
    hardly, nearly = wins & (lead < 0.8), (lead < 0) & (lead > -0.8)
    close = [*np.flatnonzero(hardly)[:3], *np.flatnonzero(nearly)[:3]]
    assert len(close) == 6
    skipped = set()
    for row in close:
        looked.clear()
        fast = shared.crit(states[row : row + 1], words, only_the_best=True)[0].numpy()
        assert fast.argmax() == scores[row].argmax()
        seen = fast > np.finfo("float32").min
        assert error(fast[seen], scores[row][seen]) < LAYER
        assert seen[28:].all() == (2 in looked) == (lead[row] > 0)
        skipped |= {1, 2} - set(looked)
    assert 2 in skipped
    generated = shared.generate(ids[:2], max_new_tokens=6)
    slowly = shared.generate(ids[:2], max_new_tokens=6, output_scores=True)
    assert generated.numpy().tolist() == slowly.numpy().tolist()


def test_a_head_that_knows_the_answer_leaves_the_tails_alone():
    model = build()
    model.crit.cluster_bias.assign([-40.0, -40.0])
    states = tf.constant(np.random.RandomState(2).normal(size=(4, 18)), tf.float32)
    scores = model.crit(states, model.transformer.word_emb, only_the_best=True)
    assert (scores[:, 11:].numpy() == np.finfo("float32").min).all()
    assert scores.shape == (4, 53)


# ---- graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{**UNTIED, "untie_r": False}, ONE_WIDTH])
def test_xla_is_eager(options, ids):
    model = build(n_layer=1, **options)
    labels = tf.where(ids % 5 == 0, -100, ids)

    def run(ids, labels):
        with tf.GradientTape() as tape:
            output = model(ids, labels=labels)
        return output.losses, output.mems, tape.gradient(output.loss, model.trainable_variables)

    expected = run(ids, labels)
    came = tf.function(run, jit_compile=True)(ids, labels)
    assert error(came[0], expected[0]) < MODEL
    assert error(came[1], expected[1]) < MODEL
    largest = max(np.abs(value).max() for value in expected[2])
    for own, wanted in zip(came[2], expected[2], strict=True):
        assert np.abs(own - wanted).max() < MODEL * largest
    assert (expected[0].numpy()[np.asarray(labels)[:, 1:] == -100] == 0).all()


def test_generation_with_xla_and_sampling(ids):
    model = build(n_layer=1, **ONE_WIDTH)
    options = {"max_new_tokens": 9, "do_sample": True, "seed": 3, "mems": memories(model)}
    with_xla = model.generate(ids, jit_compile=True, **options)
    assert with_xla.numpy().tolist() == model.generate(ids, **options).numpy().tolist()


def test_graphs_of_any_size(shared, ids):
    spec = tf.TensorSpec([None, None], tf.int64)
    run = tf.function(lambda ids: shared(ids).prediction_scores, input_signature=[spec])
    assert error(run(ids), shared(ids).prediction_scores) < MODEL
    assert error(run(ids[:1, :4]), shared(ids[:1, :4]).prediction_scores) < MODEL


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed_bfloat16"])
def test_narrow_dtypes(ids, dtype):
    model, wide = build(dtype=dtype), build()
    output = model(ids)
    assert output.prediction_scores.dtype == tf.float32
    assert np.isfinite(output.prediction_scores).all()
    assert error(output.prediction_scores, wide(ids).prediction_scores) < 0.1
    assert output.mems[0].dtype.name == model.compute_dtype
    assert np.isfinite(model(ids, labels=ids, mems=output.mems).loss)
    cache = model.init_cache(3, 9)
    assert error(model(ids, mems=cache).prediction_scores, output.prediction_scores) < 0.05


# ---- training -------------------------------------------------------------------------------


def test_dropout_is_on_in_training_only(ids):
    model = build(dropout=0.3, dropatt=0.3)
    once, again = (model(ids).prediction_scores for _ in range(2))
    assert error(once, again) == 0
    one, other = (model(ids, training=True).prediction_scores for _ in range(2))
    assert error(one, once) > 1e-2 < error(one, other)


@pytest.mark.parametrize("with_mems", [False, True])
def test_recomputed_gradients_are_equal(monkeypatch, ids, with_mems):
    came, counted = [], []
    plain = transfo_xl_transformer.recomputed
    monkeypatch.setattr(
        transfo_xl_transformer, "recomputed", lambda *given: counted.append(1) or plain(*given)
    )
    for again in (False, True):
        model = build(dropout=0.2, dropatt=0.2, untie_r=False)
        if again:
            model.gradient_checkpointing_enable()
        mems = memories(model) if with_mems else None
        model.transformer.seeds.state.assign([1, 2])
        watched = mems or []
        with tf.GradientTape() as tape:
            tape.watch(watched)
            loss = model(ids, mems=mems, labels=ids, training=True).loss
        values, past = tape.gradient(loss, [model.trainable_variables, watched])
        came.append({**model.to_canonical(values), **dict(enumerate(past))})
    assert len(counted) == 2  # the layers of the second model
    for name, value in came[0].items():
        np.testing.assert_allclose(came[1][name], value, atol=1e-5, err_msg=str(name))
        assert np.abs(value).max() > 0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_evaluate_predict(ids, jit_compile):
    model = build(n_layer=1)
    labels = np.where(ids.numpy() % 7 == 0, -100, ids.numpy())
    expected = float(model(ids, labels=labels).loss)
    model.compile(keras.optimizers.Adam(5e-3), jit_compile=jit_compile)
    data = {"input_ids": ids.numpy(), "labels": labels}
    losses = model.fit(data, epochs=3, batch_size=3, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4)
    assert losses[-1] < 0.98 * losses[0]
    if jit_compile:
        return
    expected = float(model(ids, labels=labels).loss)
    came = model.evaluate({"input_ids": ids.numpy()}, labels, batch_size=3, verbose=0)
    np.testing.assert_allclose(came, expected, rtol=1e-4)
    output = model.predict(data, batch_size=2, verbose=0)
    assert "mems" not in output
    assert error(output.prediction_scores, model(ids).prediction_scores) < MODEL


def test_what_padding_predicts_is_not_learned(ids):
    model = build(n_layer=1)
    mask = np.ones(ids.shape, "int32")
    mask[0, :4] = 0
    expected = float(model(ids, attention_mask=mask, labels=ids).loss)
    model.compile(run_eagerly=True)
    data = {"input_ids": ids.numpy(), "attention_mask": mask, "labels": ids.numpy()}
    came = model.evaluate(data, batch_size=3, verbose=0)
    np.testing.assert_allclose(came, expected, rtol=1e-5)
    data.pop("attention_mask")
    assert abs(model.evaluate(data, batch_size=3, verbose=0) - expected) > 1e-3


def test_fit_with_weights_and_metrics(ids):
    model = build(n_layer=1)
    weights = np.array([1.0, 0.0, 2.0], "float32")
    losses = model(ids, labels=ids).losses.numpy()
    expected = (losses * weights[:, None]).sum() / losses.size
    model.compile(run_eagerly=True)
    came = model.evaluate(ids.numpy(), ids.numpy(), sample_weight=weights, verbose=0)
    np.testing.assert_allclose(came, expected, rtol=1e-4)
    model.compile(metrics=[keras.metrics.SparseCategoricalAccuracy()], run_eagerly=True)
    with_metric = model.evaluate(ids.numpy(), ids.numpy(), verbose=0)
    np.testing.assert_allclose(with_metric[0], losses.mean(), rtol=1e-4)


def test_the_classifier_fits_and_finds_the_ends(ids):
    model = build("TransfoXLForSequenceClassification", n_layer=1, num_labels=3)
    text = ids.numpy()
    text[0, 6:] = text[1, 1:] = 0
    output = model(text, labels=np.array([0, 2, 1]))
    assert output.loss.shape == (3,)
    for row, length in enumerate([6, 1, 9]):
        assert error(output.logits[row], model(text[row : row + 1, :length]).logits[0]) < MODEL
    model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    losses = model.fit(text, np.array([0, 2, 1]), epochs=4, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], tf.reduce_mean(output.loss), rtol=1e-4)
    assert losses[-1] < losses[0]


# ---- vocabularies, embeddings, files --------------------------------------------------------


@pytest.mark.parametrize("options", [{}, ONE_WIDTH, {**ONE_WIDTH, **UNTIED}])
@pytest.mark.parametrize("layer", [0, -1])
def test_resized_clusters_keep_their_words(options, layer):
    model = build(**options)
    old, size = model.to_canonical(), model.config.cluster_ends[layer]
    model.resize_token_embeddings(57, layer=layer)
    assert model.config.cutoffs == ([15, 32] if layer == 0 else [11, 28])
    # The words before and behind the new ones, where they are now.
    kept = np.r_[:size, size + 4 : 57]
    tables = {name: value for name, value in model.to_canonical().items() if name in old}
    for name, value in tables.items():
        if value.shape == old[name].shape:
            assert (value == old[name]).all()
        elif len(value) == 57:
            assert (value[kept] == old[name]).all()
        else:
            assert (value[: len(old[name])] == old[name]).all()
    scores = model(tf.constant([[56, 3, size + 1]])).prediction_scores
    assert scores.shape == (1, 3, 57)
    assert error(tf.reduce_sum(tf.exp(scores), -1), np.ones((1, 3))) < LAYER


def test_embeddings_on_their_own():
    words = xlm.AdaptiveEmbedding(53, 12, 18, [11, 28], div_val=2)
    vectors = words(tf.constant([[0, 30], [52, 12]]))
    assert vectors.shape == (2, 2, 18)
    assert [tuple(v.shape) for v in words.trainable_variables].count((18, 6)) == 1
    model = build()
    model.set_input_embeddings(words)
    assert error(model.get_input_embeddings()(tf.constant([[30]])), vectors[:1, 1:]) < LAYER
    with pytest.raises(XlmfamError, match="clusters of the config"):
        model.set_input_embeddings(xlm.AdaptiveEmbedding(50, 12, 18, [11, 28], div_val=2))
    assert model.get_input_embeddings() is words


def test_keras_files(tmp_path, shared, ids):
    shared.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert error(again(ids).prediction_scores, shared(ids).prediction_scores) == 0


def test_served(tmp_path, shared, padded):
    shared.export(str(tmp_path / "served"))
    served = tf.saved_model.load(str(tmp_path / "served"))
    inputs = {name: tf.cast(value, tf.int32) for name, value in padded.items()}
    came = served.serve(inputs)["prediction_scores"]
    expected = shared(**padded).prediction_scores
    mask = padded["attention_mask"] == 1
    assert error(came[mask], expected[mask]) < MODEL


def test_automatic_classes_and_prefixed_names(shared):
    assert type(xlm.AutoModelForCausalLM.from_config(shared.config)) is type(shared)
    for name in ("TransfoXLModel", "AdaptiveEmbedding", "TransfoXLForSequenceClassification"):
        assert getattr(xlm, f"TF{name}") is getattr(xlm, name)


# ---- evaluation -----------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [{}, {"memory_length": 12, "clamp_length": 3}])
def test_perplexity_is_the_sum_of_token_losses(lengths, ids):
    model = build()
    stream = np.random.RandomState(9).randint(1, 53, 61)
    came = model.evaluate_perplexity(stream, 2, 6, **lengths)
    assert (model.transformer.mem_len, model.config.clamp_len) == (7, 5)
    if lengths:
        model.reset_memory_length(12)
        model.config.clamp_len = 3
    rows, total, mems = stream[:60].reshape(2, 30), 0.0, None
    for first in range(0, 29, 6):
        end = min(first + 6, 29)
        losses, mems = model.token_losses(rows[:, first:end], rows[:, first + 1 : end + 1], mems)
        assert losses.shape == (2, end - first)
        total += float(tf.reduce_sum(losses))
    assert came.tokens == 58
    np.testing.assert_allclose(came.loss * 58, total, rtol=1e-5)


def test_evaluation_compiles_once():
    model = build(n_layer=1)
    stream = np.random.RandomState(9).randint(1, 53, 61)
    once = model.evaluate_perplexity(stream, 2, 6)
    step = model._evaluation_step((7, 5))
    assert model.evaluate_perplexity(stream, 2, 6) == once
    assert step.experimental_get_tracing_count() == 1
    model.reset_memory_length(3)
    assert model.evaluate_perplexity(stream, 2, 6) != once
    assert model._evaluation_step((7, 5)) is not step  # nor do generate's and Keras's graphs stay


# ---- errors ---------------------------------------------------------------------------------


def test_what_cannot_be(shared, growing, ids):
    def raises(message, call, *args, **kwargs):
        with pytest.raises(XlmfamError, match=message):
            call(*args, **kwargs)

    raises("either input_ids or inputs_embeds", shared)
    raises("outside the vocabulary", shared, tf.constant([[53]]))
    raises("one for each of 2 layers, got 1", shared, ids, mems=memories(shared)[:1])
    raises("a layer of mems must have shape", shared, ids, mems=memories(shared, 2))
    right = np.arange(9)[None].repeat(3, 0) < 4
    raises("padding on the left", shared, ids, attention_mask=right)
    short = [memory[-3:] for memory in memories(growing)]
    left = np.arange(9) >= np.array([[0], [1], [2]])
    raises("mems of the whole memory, 7", growing, ids, attention_mask=left, mems=short)
    padded = {"attention_mask": left.astype("int32"), "mems": short}
    raises("mems of the whole memory, 7", growing.generate, ids, max_new_tokens=2, **padded)
    raises("no init_cache", shared.generate, ids, mems=shared.init_cache(3))
    raises("one for each of 2 layers", shared.generate, ids, mems=memories(shared)[:1])
    raises("has 2 rows, the inputs have 3", shared, ids, mems=shared.init_cache(2, 9))
    raises("room for 4 tokens in a call, 9 came", shared, ids, mems=shared.init_cache(3, 4))
    raises("two tokens in a row", shared, ids[:, :1], labels=ids[:, :1])
    raises("labels must have shape", shared, ids, labels=ids[:, :4])
    raises("labels holds 53", shared, ids, labels=ids * 0 + 53)
    raises("targets must have shape", shared.token_losses, ids, ids[:, :4])
    raises("mem_len must be 0 or more", shared.reset_memory_length, -1)
    raises("mem_len must be 0 or more", shared.evaluate_perplexity, [1, 2], memory_length=-1)
    raises("outside the vocabulary", shared.evaluate_perplexity, [1, 53])
    raises("two for each row", shared.evaluate_perplexity, [1, 2, 3], 2)
    raises("give an AdaptiveEmbedding", shared.set_input_embeddings, shared.crit)
    classifier = build("TransfoXLForSequenceClassification", pad_token_id=None, n_layer=1)
    raises("set pad_token_id in the config", classifier, ids)
    assert classifier(ids[:1]).logits.shape == (1, 2)


def test_a_projected_memory_is_for_inference(shared, ids):
    cache = shared.init_cache(3, 9)
    with pytest.raises(XlmfamError, match="has no gradients"):
        shared(ids, mems=cache, training=True)
    with tf.GradientTape() as tape:
        loss = shared(ids, mems=cache, labels=ids).loss
    with pytest.raises(XlmfamError, match="has no gradients"):
        tape.gradient(loss, shared.trainable_variables)
