"""X-MOD in Keras: languages, grouping and gathering, adding and freezing, caches, generation."""

import numpy as np
import pytest
import tensorflow as tf
from tf_models import XMOD_SIZES, build_xmod
from tolerances import MODEL

from xlmfam import tf as xlm
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.tf import xmod_languages

LANGUAGES = XMOD_SIZES["languages"]
MIXED = [2, 0, 2, 1]
BY_TOKEN = np.arange(28).reshape(4, 7) % 3


def error(came, expected):
    came, expected = np.asarray(came), np.asarray(expected)
    assert came.shape == expected.shape
    return np.abs(came - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def shared():
    """A masked model that no test may change."""
    return build_xmod()


@pytest.fixture(scope="module")
def ids():
    return tf.constant(np.random.RandomState(1).randint(4, 53, (4, 7)))


def gradients(model, *args, **kwargs):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(*args, **kwargs).loss)
    return model.to_canonical(tape.gradient(loss, model.trainable_variables))


# ---- languages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "langs",
    [
        [LANGUAGES[lang] for lang in MIXED],
        MIXED,
        tf.constant(MIXED),
        np.array(MIXED),
        tf.repeat(tf.constant(MIXED)[:, None], 7, 1),
    ],
    ids=["codes", "numbers", "tensor", "array", "tokens"],
)
def test_a_mixed_batch_is_each_sample_alone(shared, ids, langs):
    mixed = shared(ids, langs).logits
    for row, lang in enumerate(MIXED):
        alone = shared({"input_ids": ids[row : row + 1], "lang_ids": LANGUAGES[lang]})
        assert error(mixed[row], alone.logits[0]) < MODEL
    assert error(shared(ids, "en_XX").logits, mixed) > 1e-2


def test_a_language_for_each_token(ids):
    model = build_xmod(num_hidden_layers=1)
    mixed = model(ids, tf.constant(BY_TOKEN)).logits
    for lang in range(3):
        alone = model(ids, lang).logits
        chosen = lang == BY_TOKEN
        assert error(mixed[chosen], alone[chosen]) < MODEL
    row = model(ids, tf.constant(BY_TOKEN[:1])).logits
    assert error(row, model(ids, tf.constant(np.repeat(BY_TOKEN[:1], 4, 0))).logits) < MODEL


@pytest.mark.parametrize(
    ("by_token", "jit_compile", "few"),
    [(False, False, 24), (True, True, 24), (False, True, 0), (True, False, 0)],
)
def test_graphs_gather_what_eager_groups(monkeypatch, ids, by_token, jit_compile, few):
    monkeypatch.setattr(xmod_languages, "BLOCK", 4)
    monkeypatch.setattr(xmod_languages, "FEW", few)
    model = build_xmod(num_hidden_layers=1)
    langs = tf.constant(BY_TOKEN if by_token else MIXED)
    expected = gradients(model, ids, langs, labels=ids)

    @tf.function(jit_compile=jit_compile)
    def run(ids, langs):
        with tf.GradientTape() as tape:
            output = model(ids, langs, labels=ids, labelled_logits_only=28)
            loss = tf.reduce_mean(output.loss)
        return output.logits, tape.gradient(loss, model.trainable_variables)

    logits, came = run(ids, langs)
    assert error(tf.reshape(logits, [4, 7, -1]), model(ids, langs).logits) < MODEL
    came = model.to_canonical(came)
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        assert np.abs(came[name] - value).max() < MODEL * largest, name


def test_graphs_of_any_size(ids):
    model = build_xmod(num_hidden_layers=1)
    spec = tf.TensorSpec([None, None], tf.int64)
    run = tf.function(lambda ids, langs: model(ids, langs).logits, input_signature=[spec, spec])
    by_sample = tf.constant(MIXED, tf.int64)[:, None]
    assert error(run(ids, by_sample), model(ids, by_sample).logits) < MODEL
    by_token = tf.constant(BY_TOKEN)
    assert (
        error(run(ids[:, :5], by_token[:, :5]), model(ids[:, :5], by_token[:, :5]).logits) < MODEL
    )
    assert error(run(ids[:1], by_token[:1]), model(ids[:1], by_token[:1]).logits) < MODEL


@pytest.mark.parametrize(
    ("langs", "count"),
    [("sw_KE", 1), (["sw_KE", "en_XX", "sw_KE", "en_XX"], 2), (np.array([2, 2, 2, 2]), 1)],
    ids=["one code", "codes", "numbers"],
)
def test_graphs_read_only_known_languages(shared, ids, langs, count):
    run = tf.function(lambda ids: shared(ids, langs).logits, autograph=False)
    assert error(run(ids), shared(ids, langs).logits) < MODEL
    captured = {v.ref() for v in run.get_concrete_function(ids).graph.variables}
    adapters = shared.roberta.encoder.layer[1].output.adapter_modules
    read = [code for code in LANGUAGES if adapters[code].dense2.kernel.value.ref() in captured]
    assert len(read) == count


def test_no_language_and_unknown_ones(ids):
    model = build_xmod()
    with pytest.raises(XlmfamError, match=r"set_default_language\(...\), one of en_XX, de_DE"):
        model(ids)
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows en_XX, de_DE"):
        model(ids, "xx")
    with pytest.raises(XlmfamError, match="lang_ids holds 3; this model has 3 languages: en_XX"):
        model(ids, tf.constant([0, 1, 2, 3]))
    with pytest.raises(XlmfamError, match="lang_ids must have shape"):
        model(ids, ["en_XX", "de_DE"])
    with pytest.raises(XlmfamError, match="lang_ids must hold codes or numbers"):
        model(ids, tf.zeros([4]))
    with pytest.raises(XlmfamError, match="unknown language 'xx'"):
        model.set_default_language("xx")
    model.set_default_language("sw_KE")
    np.testing.assert_array_equal(model(ids).logits, model(ids, "sw_KE").logits)
    model.config.default_language = "gone"
    with pytest.raises(XlmfamError, match="unknown language 'gone'"):
        model(ids)


def test_the_default_language_reaches_compiled_functions(ids):
    model = build_xmod("XmodForTokenClassification", default_language="en_XX")
    model.compile()
    for code in ("en_XX", "sw_KE"):
        model.set_default_language(code)
        logits = model.predict(ids, verbose=0).logits
        assert error(logits, model(ids, code).logits) < MODEL


def test_choices_take_a_language_each(ids):
    model = build_xmod("XmodForMultipleChoice")
    choices = tf.reshape(ids, [2, 2, 7])
    by_choice = tf.constant([[0, 2], [1, 1]])
    expected = [
        model(ids[None, i : i + 1], int(lang)).logits[0, 0]
        for i, lang in enumerate(np.ravel(by_choice))
    ]
    expected = np.reshape(expected, (2, 2))
    assert error(model(choices, by_choice).logits, expected) < MODEL
    assert error(model(choices, tf.repeat(by_choice[..., None], 7, 2)).logits, expected) < MODEL
    by_sample = model(choices, tf.constant([[0, 0], [1, 1]])).logits
    assert error(model(choices, ["en_XX", "de_DE"]).logits, by_sample) < MODEL
    same = model(choices, tf.ones([2, 2], tf.int32)).logits
    assert error(model(choices, "de_DE").logits, same) < MODEL


# ---- adapters that come and go --------------------------------------------------------------


@pytest.mark.parametrize("init_from", ["random", "mean", "de_DE"])
def test_adding_a_language(ids, init_from, tmp_path):
    model = build_xmod()
    before = {lang: model(ids, lang).logits for lang in LANGUAGES}
    model.add_language("fr_XX", init_from)
    assert model.config.languages == [*LANGUAGES, "fr_XX"]
    for lang, logits in before.items():
        np.testing.assert_array_equal(model(ids, lang).logits, logits)
    came = model(ids, "fr_XX").logits
    if init_from == "de_DE":
        np.testing.assert_array_equal(came, before["de_DE"])
    adapters = model.roberta.encoder.layer[1].output.adapter_modules
    kernels = [np.asarray(adapters[lang].dense1.kernel) for lang in [*LANGUAGES, "fr_XX"]]
    if init_from == "mean":
        assert error(kernels[3], np.mean(kernels[:3], 0)) < MODEL
    if init_from == "random":
        assert 0.01 < kernels[3].std() < 0.03
        assert not np.any(adapters["fr_XX"].dense1.bias)
    assert len(model.weights) == len(model.canonical_variables())
    model.save_pretrained(tmp_path)
    again = xlm.XmodForMaskedLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(ids, "fr_XX").logits, came)


def test_removing_languages(ids, tmp_path):
    model = build_xmod(default_language="en_XX")
    kept = model(ids, "sw_KE").logits
    model.remove_languages(["en_XX", "de_DE"])
    assert model.config.languages == ["sw_KE"]
    assert model.config.default_language is None
    np.testing.assert_array_equal(model(ids, "sw_KE").logits, kept)
    assert len(model.weights) == len(model.canonical_variables())
    with pytest.raises(XlmfamError, match="unknown language 'en_XX'"):
        model.remove_languages("en_XX")
    with pytest.raises(XlmfamError, match="one language at least"):
        model.remove_languages("sw_KE")
    model.save_pretrained(tmp_path)
    again = xlm.XmodForMaskedLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(ids, 0).logits, kept)


def test_languages_that_cannot_be_added():
    model = build_xmod()
    with pytest.raises(XlmfamError, match="there is a language 'de_DE' already"):
        model.add_language("de_DE")
    with pytest.raises(XlmfamError, match=r"without '\.' and '/'"):
        model.add_language("de.DE")
    with pytest.raises(XlmfamError, match="init_from must be one of random, mean or a language"):
        model.add_language("fr_XX", "it_IT")
    assert model.config.languages == LANGUAGES


def test_loading_some_languages(ids, tmp_path):
    model = build_xmod()
    model.save_pretrained(tmp_path)
    some = xlm.XmodForMaskedLM.from_pretrained(tmp_path, languages=["sw_KE", "en_XX"])
    assert some.config.languages == ["sw_KE", "en_XX"]
    np.testing.assert_array_equal(some(ids, 1).logits, model(ids, "en_XX").logits)
    assert some.num_parameters() < model.num_parameters()


def test_freezing(ids):
    model = build_xmod("XmodForSequenceClassification", adapter_layer_norm=True)
    model.freeze_embeddings_and_language_adapters()
    variables = model.canonical_variables()
    learning = {name for name, variable in variables.items() if variable.trainable}
    parts = ("embeddings", "adapter_modules", "adapter_layer_norm")
    assert learning == {n for n in variables if not any(part in n for part in parts)}
    came = gradients(model, ids, "en_XX", labels=tf.constant([0, 1, 1, 0]))
    assert came.keys() == learning
    model.train_only_language("sw_KE")
    learning = {name for name, variable in variables.items() if variable.trainable}
    assert learning == {name for name in variables if "embeddings" in name or "sw_KE" in name}
    with pytest.raises(XlmfamError, match="unknown language"):
        model.train_only_language("xx")
    model.resize_token_embeddings(60)
    assert model.get_input_embeddings().embeddings.trainable
    model.freeze_embeddings_and_language_adapters()
    model.resize_token_embeddings(61)
    assert not model.get_input_embeddings().embeddings.trainable


def test_tied_and_untied_projections(ids, tmp_path):
    model = build_xmod(tie_word_embeddings=False)
    assert model.get_output_embeddings() is model.lm_head.decoder
    assert model.lm_head.decoder.kernel.shape == (24, 53)
    assert model.lm_head.decoder.bias is None  # the head's is the only one
    model.save_pretrained(tmp_path)
    again = xlm.XmodForMaskedLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(ids, 0).logits, model(ids, 0).logits)
    model.resize_token_embeddings(59)
    assert model(ids, 0).logits.shape == (4, 7, 59)


# ---- the rest -------------------------------------------------------------------------------


def test_a_base_without_pooling(ids, tmp_path):
    build_xmod().save_pretrained(tmp_path)
    model, info = xlm.XmodModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == ["pooler.dense.weight", "pooler.dense.bias"]
    bare, info = xlm.XmodModel.from_pretrained(
        tmp_path, add_pooling_layer=False, output_loading_info=True
    )
    assert info["missing_keys"] == []
    assert bare(ids, 0).pooler_output is None
    np.testing.assert_array_equal(bare(ids, 0).last_hidden_state, model(ids, 0).last_hidden_state)
    model.save_pretrained(tmp_path / "pooled")
    again = xlm.XmodModel.from_pretrained(tmp_path / "pooled", add_pooling_layer=False)
    np.testing.assert_array_equal(again(ids, 0).last_hidden_state, bare(ids, 0).last_hidden_state)


@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
def test_caches_give_what_the_whole_gives(ids, kind):
    model = build_xmod("XmodForCausalLM", is_decoder=True, position_embedding_type=kind)
    mask = np.ones((4, 7), int)
    mask[1, :3] = 0
    ids, mask = tf.where(mask == 0, tf.ones_like(ids), ids), tf.constant(mask)
    whole = model(ids, MIXED, mask).logits
    first = model(ids[:, :4], MIXED, mask[:, :4], use_cache=True)
    rest = model(ids[:, 4:], MIXED, mask, past_key_values=first.past_key_values).logits
    assert error(rest, whole[:, 4:]) < MODEL
    buffer = model.init_cache(4, 9)
    run = tf.function(
        lambda ids, mask, cache: model(ids, MIXED, mask, past_key_values=cache, return_dict=False)
    )
    _, buffer = model(ids[:, :4], MIXED, mask[:, :4], past_key_values=buffer, return_dict=False)
    came, buffer = run(ids[:, 4:], mask, buffer)
    assert error(came, rest) < MODEL
    assert int(buffer.length) == 7
    with pytest.raises(XlmfamError, match="the cache holds 9 tokens"):
        model(ids, MIXED, past_key_values=buffer)
    triangle = tf.repeat(tf.linalg.band_part(tf.ones([7, 7], tf.int64), -1, 0)[None], 4, 0)
    both = triangle * mask[:, None]
    seen = model(ids, MIXED, both).logits[np.asarray(mask) == 1]
    assert error(seen, whole[np.asarray(mask) == 1]) < MODEL
    buffer = model.init_cache(4, 9)
    buffer = model(ids[:, :4], MIXED, both[:, :4, :4], past_key_values=buffer).past_key_values
    if kind != "absolute":  # what a past holds besides tokens, such a mask does not tell
        came = model(ids[:, 4:], MIXED, both[:, 4:], past_key_values=buffer).logits
        assert error(came, rest) < MODEL


def test_fill_mask_probabilities_follow_the_language(shared, ids):
    rows, columns = np.array([0, 2]), np.array([3, 1])
    ones = np.ones((4, 7), int)
    came = shared.mask_probabilities(ids, ones, ["sw_KE", "en_XX", "de_DE", "en_XX"], rows, columns)
    logits = shared(ids, ["sw_KE", "en_XX", "de_DE", "en_XX"]).logits
    expected = tf.nn.softmax(tf.gather_nd(logits, np.stack([rows, columns], -1)))
    assert error(came, expected) < MODEL


# ---- generation -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder():
    return build_xmod("XmodForCausalLM", is_decoder=True, eos_token_id=None)


def generated(model, prompts, langs, steps=4, **options):
    """Return ids and the scores (rows, steps, V) or, of beams, (rows, 1, 1) that they had."""
    output = model.generate(
        prompts,
        lang_ids=langs,
        max_new_tokens=steps,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    scores = output.sequences_scores
    scores = np.stack(output.scores, 1) if scores is None else scores[:, None, None]
    return output.sequences.numpy(), np.asarray(scores)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_rows_are_generated_in_their_languages(decoder, ids, options):
    prompts = np.array(ids[:2, :4])
    prompts[0, :2] = 1
    first = generated(decoder, prompts[:1, 2:], "sw_KE", **options)
    second = generated(decoder, prompts[1:], "en_XX", **options)
    for langs in (["sw_KE", "en_XX"], tf.constant([[2] * 4, [0] * 4])):
        came, scores = generated(decoder, prompts, langs, **options)
        assert came[0].tolist() == [1, 1, *first[0][0]]
        assert came[1].tolist() == second[0][0].tolist()
        assert error(scores, np.concatenate([first[1], second[1]])) < MODEL
    assert error(generated(decoder, prompts[1:], "de_DE", **options)[1], second[1]) > 1e-3


def test_new_tokens_have_the_language_of_the_last_one(decoder, ids):
    given = np.array([[0, 1, 2, 0, 1, 2, 2]])
    for use_cache in (True, False):
        text, scores = generated(decoder, ids[:1], given, use_cache=use_cache)
        for step in range(4):
            langs = np.concatenate([given, np.full((1, step), 2)], 1)
            # A token that happens to be the padding has its place all the same.
            places = 2 + tf.range(7 + step)[None]
            logits = decoder(tf.constant(text[:, : 7 + step]), langs, position_ids=places).logits
            assert error(scores[0, step], logits[0, -1]) < MODEL


def test_generation_counts_traces_and_languages(ids):
    model = build_xmod("XmodForCausalLM", is_decoder=True, num_hidden_layers=1)
    with pytest.raises(XlmfamError, match="give lang_ids"):
        model.generate(ids, max_new_tokens=2)
    with pytest.raises(XlmfamError, match="lang_ids must have shape"):
        model.generate(ids, lang_ids=[0, 1], max_new_tokens=2)
    with pytest.raises(ConfigError, match="the model has 35"):
        model.generate(ids, lang_ids=0, max_new_tokens=30)
    model.generate(ids, lang_ids=[0, 1, 0, 1], max_new_tokens=2)
    traces = model.generation_traces()
    model.generate(ids, lang_ids=["de_DE", "en_XX", "en_XX", "en_XX"], max_new_tokens=2)
    assert model.generation_traces() == traces
    model.add_language("fr_XX", "mean")
    assert model.generation_traces() == 0
    assert model.generate(ids, lang_ids="fr_XX", max_new_tokens=2).shape == (4, 9)


def test_a_model_that_is_no_decoder_generates(ids):
    model = build_xmod("XmodForCausalLM", num_hidden_layers=1, default_language="de_DE")
    text, scores = generated(model, ids[:1], None, steps=3, eos_token_id=None)
    for step in range(3):
        places = 2 + tf.range(7 + step)[None]
        logits = model(tf.constant(text[:, : 7 + step]), position_ids=places).logits
        assert error(scores[0, step], logits[0, -1]) < MODEL
