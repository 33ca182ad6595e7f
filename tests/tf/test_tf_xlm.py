"""XLM in Keras: languages, labelled logits, caches, padding, pruning, graphs, filling in."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tf_models import build_xlm
from tolerances import MODEL

from xlmfam import tf as xlm
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.positions import interleaved_sinusoids

ASM = {"asm": True, "asm_cutoffs": [9, 30]}
QA = {"class_name": "XLMForQuestionAnswering", "start_n_top": 2, "end_n_top": 2}


def error(came, expected):
    came, expected = np.asarray(came), np.asarray(expected)
    assert came.shape == expected.shape
    return np.abs(came - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def masked():
    """A masked model that no test may change."""
    return build_xlm()


@pytest.fixture(scope="module")
def causal():
    """A causal model that no test may change."""
    return build_xlm(causal=True)


@pytest.fixture(scope="module")
def ids():
    return tf.constant(np.random.RandomState(1).randint(6, 53, (2, 7)))


@pytest.fixture(scope="module")
def labels(ids):
    kept = np.array([[0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 1]], bool)
    return tf.constant(np.where(kept, ids, -100))


@pytest.fixture(scope="module")
def mask():
    return tf.constant([[1] * 7, [1] * 5 + [0] * 2])


def gradients(model, *args, **kwargs):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(*args, **kwargs).loss)
    return model.to_canonical(tape.gradient(loss, model.trainable_variables))


def assert_same_gradients(came, expected):
    largest = max(np.abs(value).max() for value in expected.values())
    assert came.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(came[name] - value).max() < MODEL * largest, name


# ---- languages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "langs",
    [["fr", "de"], [2, 0], tf.constant([2, 0]), np.array(["fr", "de"]), [["fr"] * 7, [0] * 7]],
    ids=["names", "ids", "tensor", "array", "tokens"],
)
def test_every_way_to_say_the_languages(masked, ids, langs):
    full = tf.constant([[2] * 7, [0] * 7])
    expected = masked(ids, langs=full).logits
    np.testing.assert_array_equal(masked({"input_ids": ids, "langs": langs}).logits, expected)
    np.testing.assert_array_equal(masked([ids, None, langs]).logits, expected)
    assert error(masked(ids).logits, expected) > 1e-2
    assert error(masked(ids, langs="fr").logits[:1], expected[:1]) < MODEL


def test_unknown_languages(masked, ids):
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows de, en, fr"):
        masked(ids, langs="xx")
    with pytest.raises(XlmfamError, match="langs holds 3; this model has 3 languages: de, en, fr"):
        masked(ids, langs=tf.fill([2, 7], 3))
    with pytest.raises(XlmfamError, match="langs must have shape"):
        masked(ids, langs=["de", "en", "fr"])
    with pytest.raises(XlmfamError, match="langs must hold names or ids"):
        masked(ids, langs=tf.zeros([2, 7]))
    with pytest.raises(XlmfamError, match="unknown language 'xx'"):
        masked.generate(ids, langs="xx")
    with pytest.raises(XlmfamError, match="no lang2id"):
        build_xlm(lang2id=None)(ids, langs="de")


def test_choices_take_a_language_each(ids):
    model = build_xlm("XLMForMultipleChoice")
    choices = tf.stack([ids, ids[:, ::-1]], 1)
    by_choice = tf.constant([[0, 2], [1, 1]])
    expected = model(choices, langs=tf.repeat(by_choice[..., None], 7, axis=2)).logits
    assert error(model(choices, langs=by_choice).logits, expected) < MODEL
    by_sample = model(choices, langs=["de", "en"]).logits
    assert error(by_sample, model(choices, langs=tf.constant([[0, 0], [1, 1]])).logits) < MODEL
    assert error(by_sample, expected) > 1e-3


# ---- labelled positions only ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"causal": True}, ASM], ids=["masked", "causal", "asm"])
def test_labelled_logits_are_those_of_the_whole(ids, labels, options):
    model = build_xlm(**options)
    whole = model(ids, labels=labels)
    some = model(ids, labels=labels, labelled_logits_only=True)
    places = np.asarray(labels)
    if options.get("causal"):
        places = np.pad(places[:, 1:], [(0, 0), (0, 1)], constant_values=-100)
    assert error(some.logits, np.asarray(whole.logits)[places != -100]) < MODEL
    assert error(some.loss, whole.loss) < MODEL
    for room in (8, 20):  # the latter is more than there are positions
        fixed = model(ids, labels=labels, labelled_logits_only=room)
        assert fixed.logits.shape == (room, 53)
        assert error(fixed.logits[: len(some.logits)], some.logits) < MODEL
        assert fixed.loss.shape == (room,)
        assert error(np.mean(fixed.loss), np.mean(whole.loss)) < MODEL


def test_the_gradients_of_labelled_logits(masked, ids, labels):
    expected = gradients(masked, ids, labels=labels)
    for room in (True, 9):
        came = gradients(masked, ids, labels=labels, labelled_logits_only=room)
        assert_same_gradients(came, expected)


def test_too_little_room_for_the_labels(masked, ids, labels):
    with pytest.raises(XlmfamError, match="labelled_logits_only=4, and there are 5 labels"):
        masked(ids, labels=labels, labelled_logits_only=4)
    with pytest.raises(XlmfamError, match="needs labels"):
        masked(ids, labelled_logits_only=True)
    with pytest.raises(XlmfamError, match="not the last one's"):
        masked(ids, labels=labels, last_logits_only=True)
    # Where the labels cannot be counted, too many of them must not go unnoticed.
    run = tf.function(
        lambda room: masked(ids, labels=labels, labelled_logits_only=room).loss, jit_compile=True
    )
    assert np.isnan(run(4)).all()
    assert error(np.mean(run(6)), np.mean(masked(ids, labels=labels).loss)) < MODEL


# ---- caches ---------------------------------------------------------------------------------


def by_dict(model, ids, mask, langs, ends):
    cache, parts = {"slen": 0}, []
    for end in ends:
        parts.append(model(ids[:, :end], mask[:, :end], langs[:, :end], cache=cache).logits)
    return tf.concat(parts, 1), cache


@pytest.mark.parametrize("options", [{}, ASM], ids=["plain", "asm"])
def test_both_caches_give_what_the_whole_gives(ids, options):
    model = build_xlm(causal=True, **options)
    mask = tf.constant([[1] * 7, [0] * 3 + [1] * 4])
    langs = tf.reshape(tf.range(14), [2, 7]) % 3
    seen = np.asarray(mask) == 1
    whole = np.asarray(model(ids, mask, langs).logits)[seen]
    steps, cache = by_dict(model, ids, mask, langs, (4, 5, 7))
    assert error(np.asarray(steps)[seen], whole) < MODEL
    assert cache["slen"] == 7
    assert cache[1][0].shape == (2, 4, 7, 6)
    buffer, parts = model.init_cache(2, 9), []
    for start, end in ((0, 4), (4, 5), (5, 7)):
        new = slice(start, end)
        output = model(ids[:, new], mask[:, :end], langs[:, new], cache=buffer)
        buffer = output.past_key_values
        parts.append(output.logits)
    assert int(buffer.length) == 7
    assert error(np.asarray(tf.concat(parts, 1))[seen], whole) < MODEL


def test_both_caches_in_a_graph(causal, ids):
    mask, langs = tf.constant([[1] * 7, [0] * 3 + [1] * 4]), tf.ones([2, 7], tf.int32)
    seen = np.asarray(mask) == 1
    expected, _ = by_dict(causal, ids, mask, langs, (4, 7))

    @tf.function(jit_compile=True)
    def with_a_dict(ids, mask, langs):
        steps, cache = by_dict(causal, ids, mask, langs, (4, 7))
        return steps, cache[0][0]

    steps, keys = with_a_dict(ids, mask, langs)
    assert keys.shape == (2, 4, 7, 6)
    assert error(np.asarray(steps)[seen], np.asarray(expected)[seen]) < MODEL

    @tf.function
    def with_a_buffer(ids, mask, langs, buffer):
        output = causal(ids, mask, langs, cache=buffer)
        return output.logits, output.past_key_values

    room = tf.pad(mask, [[0, 0], [0, 2]])
    first, buffer = with_a_buffer(ids[:, :4], room, langs[:, :4], causal.init_cache(2, 9))
    later, _ = with_a_buffer(ids[:, 4:], room, langs[:, 4:], buffer)
    came = np.asarray(tf.concat([first, later], 1))
    assert error(came[seen], np.asarray(expected)[seen]) < MODEL


def test_caches_that_cannot_be(masked, causal, ids):
    cache = {"slen": 0}
    masked(ids[:, :4], cache=cache)
    with pytest.raises(XlmfamError, match="a filled cache needs a causal model"):
        masked(ids, cache=cache)
    cache = {"slen": 0}
    causal(ids, cache=cache)
    with pytest.raises(XlmfamError, match="nothing is new"):
        causal(ids, cache=cache)
    with pytest.raises(XlmfamError, match="must be a dict that begins as"):
        causal(ids, cache={})
    twice = tf.concat([ids, ids], 1)
    with pytest.raises(XlmfamError, match="labels need the whole text at once"):
        causal(twice, cache=cache, labels=twice)
    with pytest.raises(XlmfamError, match="the cache holds 6 tokens, 7 are needed"):
        causal(ids, cache=causal.init_cache(2, 6))
    anything = tf.function(
        lambda ids: causal(ids, cache={"slen": 0}).logits,
        input_signature=[tf.TensorSpec([2, None], tf.int32)],
        autograph=False,
    )
    with pytest.raises(XlmfamError, match="length is known when it is traced"):
        anything(tf.cast(ids, tf.int32))


# ---- positions, padding, lengths ------------------------------------------------------------


def test_left_padding_of_a_causal_model_changes_nothing(causal, ids):
    padded = tf.pad(ids, [[0, 0], [3, 0]], constant_values=2)
    mask = tf.constant([[0] * 3 + [1] * 7] * 2)
    expected = causal(ids).logits
    assert error(causal(padded, mask).logits[:, 3:], expected) < MODEL
    # Padding that a causal row begins with is seen without being told.
    assert error(causal(padded).logits[:, 3:], expected) < MODEL


def test_what_is_outside(masked, ids):
    with pytest.raises(XlmfamError, match=r"lengths holds 8, outside \[0, 7\]"):
        masked(ids, lengths=tf.constant([7, 8]))
    with pytest.raises(XlmfamError, match="the text has 38 tokens, max_position_embeddings is 37"):
        masked(tf.fill([1, 38], 9))
    with pytest.raises(XlmfamError, match=r"position_ids holds 37, outside \[0, 36\]"):
        masked(ids, position_ids=tf.fill([2, 7], 37))
    with pytest.raises(XlmfamError, match="token_type_ids holds 60"):
        masked(ids, token_type_ids=tf.fill([2, 7], 60))
    with pytest.raises(XlmfamError, match="src_enc needs a decoder"):
        masked(ids, src_enc=tf.zeros([2, 3, 24]))
    with pytest.raises(XlmfamError, match="head_mask must have shape"):
        masked(ids, head_mask=tf.ones([3, 4]))
    with pytest.raises(ConfigError, match="needs 39 positions"):
        masked.generate(ids, max_length=39)


def test_a_row_of_nothing_but_padding(masked, ids):
    mask = tf.constant([[1] * 7, [0] * 7])
    states = masked.transformer(ids, mask).last_hidden_state
    assert error(states[:1], masked.transformer(ids[:1]).last_hidden_state) < MODEL
    assert not np.any(states[1])
    labels = tf.where(mask == 1, ids, -100)
    alone = gradients(masked, ids[:1], labels=ids[:1])
    assert_same_gradients(gradients(masked, ids, mask, labels=labels), alone)


# ---- graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_graphs_of_any_size(request, kind, ids, mask):
    model = request.getfixturevalue(kind)
    spec = tf.TensorSpec([None, None], tf.int64)
    run = tf.function(
        lambda i, m: (model(i, m, langs="en").logits, model(i).logits),
        input_signature=[spec, spec],
    )
    mask = tf.cast(mask, tf.int64)
    came, unmasked = run(ids, mask)
    seen = np.asarray(mask) == 1
    assert error(np.asarray(came)[seen], np.asarray(model(ids, mask, "en").logits)[seen]) < MODEL
    assert error(unmasked, model(ids).logits) < MODEL


def test_answers_in_xla(ids, mask):
    model = build_xlm(**QA)
    arguments = {"attention_mask": mask, "p_mask": 1 - mask, "cls_index": tf.constant([0, 1])}
    expected = model(ids, **arguments)
    came = tf.function(lambda: dict(model(ids, **arguments)), jit_compile=True)()
    for name, value in expected.items():
        assert error(came[name], value) < MODEL, name


# ---- parameters -----------------------------------------------------------------------------


def test_sinusoids_are_kept_and_never_learned(ids, tmp_path):
    model = build_xlm(sinusoidal_embeddings=True)
    table = model.transformer.position_embeddings.embeddings
    np.testing.assert_array_equal(table, interleaved_sinusoids(37, 24))
    assert not table.trainable
    assert not any(table is variable for variable in model.trainable_variables)
    table.assign_add(tf.ones_like(table))
    before = table.numpy()
    model.compile(optimizer="sgd", run_eagerly=True)
    model.fit({"input_ids": ids, "labels": ids}, verbose=0)
    model.save_pretrained(tmp_path)
    again = xlm.XLMWithLMHeadModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.transformer.position_embeddings.embeddings, before)
    assert len(again.trainable_variables) == len(model.trainable_variables)


def test_pruned_heads_are_heads_that_are_masked(ids, mask, tmp_path):
    model = build_xlm()
    head_mask = tf.constant([[1.0, 0, 1, 1], [0, 1, 1, 0]])
    expected = model(ids, mask, head_mask=head_mask).logits
    model.prune_heads({0: [1]})
    model.prune_heads({1: [3, 0], 0: [1]})
    assert model.transformer.attentions[1].q_lin.kernel.shape == (24, 12)
    assert model.transformer.attentions[1].out_lin.kernel.shape == (12, 24)
    assert error(model(ids, mask).logits, expected) < MODEL
    # A mask for all heads that there were: of those that are left it takes its own.
    assert error(model(ids, mask, head_mask=head_mask).logits, expected) < MODEL
    assert model.config.pruned_heads == {0: [1], 1: [0, 3]}
    model.save_pretrained(tmp_path)
    again = xlm.XLMWithLMHeadModel.from_pretrained(tmp_path)
    assert error(again(ids, mask).logits, expected) < MODEL
    assert model.count_params() == again.count_params()
    assert gradients(model, ids, langs="en", labels=ids).keys() == model.to_canonical().keys()
    with pytest.raises(ConfigError, match="leaves layer 0 no head"):
        model.prune_heads({0: [0, 2, 3]})
    assert model.config.pruned_heads == {0: [1], 1: [0, 3]}


def test_a_pruned_causal_model_generates(ids):
    model = build_xlm(causal=True)
    masked_heads = tf.constant([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"langs": "de", "max_new_tokens": 5, "num_beams": 2}
    expected = model.generate(ids, head_mask=masked_heads, **options)
    model.prune_heads({0: [1]})
    np.testing.assert_array_equal(model.generate(ids, **options), expected)
    with pytest.raises(XlmfamError, match="needs a dict"):
        model.init_cache(1, 5)


@pytest.mark.parametrize("options", [{}, ASM], ids=["plain", "asm"])
def test_resizing_the_vocabulary(ids, options):
    model = build_xlm(**options)
    before = model(ids).logits
    model.resize_token_embeddings(61)
    output = model(ids)
    assert output.logits.shape == (2, 7, 61)
    if not options:  # an adaptive softmax normalises over the new words too
        assert error(output.logits[..., :53], before) < MODEL
    last = tf.fill([1, 3], 60)
    assert gradients(model, last, langs="en", labels=last).keys() == model.to_canonical().keys()


# ---- training mode --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"causal": True}, {"is_encoder": False}])
def test_checkpointed_gradients_are_equal(ids, mask, labels, options):
    model = build_xlm(dropout=0.2, attention_dropout=0.2, **options)
    arguments = {"labels": labels, "langs": "en", "training": True}
    source = tf.constant(np.random.RandomState(2).normal(size=(2, 4, 24)), tf.float32)
    if not model.config.is_encoder:
        arguments["src_enc"] = source
    found = []
    for again in (False, True):
        (model.gradient_checkpointing_enable if again else model.gradient_checkpointing_disable)()
        model.transformer.seeds.state.assign([5, 7])
        with tf.GradientTape() as tape:
            tape.watch(source)
            loss = tf.reduce_mean(model(ids, mask, **arguments).loss)
        found.append(tape.gradient(loss, [*model.trainable_variables, source]))
    assert (found[0][-1] is None) == model.config.is_encoder
    for plain, recomputed in zip(*found, strict=True):
        if plain is not None:
            np.testing.assert_allclose(recomputed, plain, atol=1e-6)


def test_dropout_only_in_training(ids):
    model = build_xlm(dropout=0.5)
    np.testing.assert_array_equal(model(ids).logits, model(ids).logits)
    drops = [model(ids, training=True).logits for _ in range(2)]
    assert error(*drops) > 1e-2


# ---- heads ----------------------------------------------------------------------------------


def test_losses_are_one_per_sample(ids, mask):
    model = build_xlm("XLMForSequenceClassification", num_labels=3)
    one = model(ids, mask, labels=tf.constant([2, 0])).loss
    logits = model(ids, mask).logits
    assert error(one, tf.nn.sparse_softmax_cross_entropy_with_logits([2, 0], logits)) < MODEL
    # A label of -100 does not count, and the mean is that of those that do.
    some = model(ids, mask, labels=tf.constant([-100, 0])).loss
    np.testing.assert_allclose(some, [0, 2 * one[1]], rtol=1e-5)
    # The reference would have kept the first kind in the config.
    assert model.config.problem_type is None
    several = tf.constant([[1.0, 0, 1], [0, 0, 1]])
    assert model(ids, mask, labels=several).loss.shape == (2,)
    with pytest.raises(XlmfamError, match="labels must have shape"):
        model(ids, labels=tf.zeros([2, 4]))


def test_positions_outside_the_text_do_not_count(ids):
    model = build_xlm("XLMForQuestionAnsweringSimple")
    start, end = tf.constant([1, 9]), tf.constant([2, 3])
    output = model(ids, start_positions=start, end_positions=end)
    logs = [tf.nn.log_softmax(output[name]) for name in ("start_logits", "end_logits")]
    expected = (-logs[0][0, 1] - (logs[1][0, 2] + logs[1][1, 3]) / 2) / 2
    assert output.loss.shape == (2,)
    np.testing.assert_allclose(np.mean(output.loss), expected, rtol=1e-5)
    nowhere = tf.constant([7, 9])
    assert np.isnan(model(ids, start_positions=nowhere, end_positions=end).loss).all()


def test_question_answering_refuses_what_cannot_be(ids):
    with pytest.raises(XlmfamError, match="num_labels=2"):
        build_xlm("XLMForQuestionAnsweringSimple", num_labels=3)
    model = build_xlm("XLMForQuestionAnswering")
    with pytest.raises(XlmfamError, match=r"end_positions holds 7, outside \[0, 6\]"):
        model(ids, start_positions=tf.constant([0, 1]), end_positions=tf.constant([6, 7]))
    with pytest.raises(XlmfamError, match="must not exceed the 4 positions"):
        model(ids[:, :4])
    with pytest.raises(XlmfamError, match=r"\(batch, choices, sequence\)"):
        build_xlm("XLMForMultipleChoice")(ids)


@pytest.mark.parametrize("policy_name", ["mixed_bfloat16", "float16"])
@pytest.mark.parametrize("class_name", ["XLMWithLMHeadModel", "XLMForQuestionAnswering"])
def test_half_precision_is_finite_and_near(ids, mask, class_name, policy_name):
    sizes = {"start_n_top": 2, "end_n_top": 2}
    full = build_xlm(class_name, **sizes)
    half = build_xlm(class_name, dtype=policy_name, **sizes)
    p_mask = {"p_mask": 1 - mask} if class_name == "XLMForQuestionAnswering" else {}
    came = tf.cast(half(ids, mask, **p_mask)[0], tf.float32)
    assert np.isfinite(came).all()
    assert error(came, full(ids, mask, **p_mask)[0]) < 0.1


# ---- generation and text --------------------------------------------------------------------


def test_new_tokens_speak_the_language_of_their_prompt(causal, ids):
    options = {"max_new_tokens": 4, "do_sample": False}
    both = causal.generate(ids, langs=["fr", "de"], **options)
    for row, lang in enumerate(("fr", "de")):
        alone = causal.generate(ids[row : row + 1], langs=lang, **options)
        np.testing.assert_array_equal(both[row], alone[0])
    again = causal.generate(ids, langs=["fr", "de"], use_cache=False, **options)
    np.testing.assert_array_equal(both, again)
    # What the whole text says, each row in its language, is what came step by step.
    said = tf.argmax(causal(both, langs=["fr", "de"]).logits, -1)
    np.testing.assert_array_equal(said[:, 6:-1], both[:, 7:])


def test_calls_of_similar_lengths_share_a_graph(masked, ids):
    before = masked.generation_traces()
    first = masked.generate(ids, langs="de", max_new_tokens=3)
    traces = masked.generation_traces() - before
    masked.generate(ids[:, :5], langs=["fr", "en"], max_new_tokens=4)
    assert masked.generation_traces() - before == traces > 0
    # Each of them is what hides behind a mask token.
    for length in (7, 8, 9):
        so_far = tf.pad(first[:, :length], [[0, 0], [0, 1]])
        assert masked.config.mask_token_id == 0
        guessed = tf.argmax(masked(so_far, langs="de").logits[:, -1], -1)
        np.testing.assert_array_equal(first[:, length], guessed)
    compiled = masked.generate(ids, langs="de", max_new_tokens=3, jit_compile=True)
    np.testing.assert_array_equal(compiled, first)


@pytest.fixture(scope="module")
def tokenizer():
    folder = Path(__file__).parents[1] / "data" / "tokenizers" / "xlm"
    from xlmfam import XLMTokenizer

    return XLMTokenizer(folder / "vocab.json", folder / "merges.txt")


def test_fill_mask(tokenizer, causal):
    model = build_xlm(vocab_size=len(tokenizer))
    mask = tokenizer.mask_token
    one, two = f"the {mask} is red", f"{mask} and a {mask} there"
    guesses = model.fill_mask(one, tokenizer, top_k=3, lang="en")
    ids = np.asarray(tokenizer(one, return_tensors="np", lang="en")["input_ids"])
    place = int(np.flatnonzero(ids[0] == tokenizer.mask_token_id)[0])
    chances = tf.nn.softmax(model(ids, langs="en").logits[0, place])
    best = tf.math.top_k(chances, 3)
    assert [guess["token"] for guess in guesses] == best.indices.numpy().tolist()
    assert [g["score"] for g in guesses] == pytest.approx(best.values.numpy().tolist(), rel=1e-4)
    both = model.fill_mask([one, two], tokenizer, top_k=3, lang="en")
    assert [g["token"] for g in both[0]] == [g["token"] for g in guesses]
    assert [len(guesses) for guesses in both[1]] == [3, 3]
    with pytest.raises(XlmfamError, match="this one is causal"):
        causal.fill_mask(one, tokenizer)


def test_translate(tokenizer):
    model = build_xlm("XLMEncoderDecoder", vocab_size=len(tokenizer))
    texts = ["the house", "a red house is there"]
    both = model.translate(texts, tokenizer, "en", "de", max_length=8, num_beams=2)
    assert model.translate(texts[0], tokenizer, "en", "de", max_length=8, num_beams=2) == both[0]
    with pytest.raises(XlmfamError, match="unknown language 'xx'"):
        model.translate(texts, tokenizer, "en", "xx")
    with pytest.raises(XlmfamError, match=r"must lie in \[2, 38\]"):
        model.translate(texts, tokenizer, "en", "de", max_length=39)
