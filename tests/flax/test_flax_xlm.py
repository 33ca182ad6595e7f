"""XLM in Flax: transformations, languages, labelled logits, caches, training, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from flax_helpers import close, far, make_xlm

from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters import layout_shape, spell
from xlmfam.common.positions import interleaved_sinusoids
from xlmfam.flax import KeyValueCache, XLMConfig, XLMModel

ADAPTIVE = {"asm": True, "asm_cutoffs": [9, 30]}


@pytest.fixture(scope="module")
def masked():
    return make_xlm()


@pytest.fixture(scope="module")
def causal():
    return make_xlm(causal=True)


@pytest.fixture
def ids():
    return np.random.default_rng(3).integers(6, 53, (2, 7))


@pytest.fixture
def labels(ids):
    kept = np.array([[0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 1]], bool)
    return np.where(kept, ids, -100)


@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("XLMModel", {"is_encoder": False}),
        ("XLMModel", {"pruned_heads": {1: [0, 2]}, "sinusoidal_embeddings": True}),
        ("XLMWithLMHeadModel", {"tie_word_embeddings": False, "n_langs": 1, "lang2id": None}),
        ("XLMWithLMHeadModel", ADAPTIVE),
        ("XLMForSequenceClassification", {}),
        ("XLMForMultipleChoice", {"summary_use_proj": False, "num_labels": 24}),
        ("XLMForTokenClassification", {"num_labels": 5}),
        ("XLMForQuestionAnsweringSimple", {}),
        ("XLMForQuestionAnswering", {}),
        ("XLMEncoderDecoder", {}),
    ],
)
def test_the_tree_is_the_tables(class_name, options):
    model = make_xlm(class_name, **options)
    more = {}
    if options.get("is_encoder") is False:
        more["src_enc"] = jnp.zeros((1, 3, 24))
    if model.config.uses_languages:
        more["langs"] = jnp.zeros((1, 1), int)
    ids = jnp.zeros((1, 6), int)
    made = jax.eval_shape(lambda: model.module.init(jax.random.key(0), ids, **more))
    found = {"/".join(path): leaf.shape for path, leaf in flatten_dict(made["params"]).items()}
    rows = [row for row in model.expected_parameters().values() if row.tied_to is None]
    assert found == {spell(row, "flax"): layout_shape(row, "flax") for row in rows}


def test_jit_vmap_and_grad(masked, ids, labels):
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    eager = masked(ids, mask, ["fr", "de"], labels=labels)

    def call(params, ids, mask, langs, labels):
        return masked(ids, mask, langs, labels=labels, params=params)

    compiled = jax.jit(call)(masked.params, ids, mask, np.array([2, 0]), labels)
    close(compiled.loss, eager.loss)
    close(compiled.logits, eager.logits)
    assert list(compiled.keys()) == ["loss", "logits"]

    def one(params, ids, mask, lang, labels):
        return call(params, ids[None], mask[None], lang[None], labels[None])

    axes = (None, 0, 0, 0, 0)
    each = jax.jit(jax.vmap(one, axes))(masked.params, ids, mask, np.array([2, 0]), labels)
    close(each.logits[:, 0], eager.logits)

    gradient = jax.jit(jax.grad(lambda *a: call(*a).loss))
    slopes = gradient(masked.params, ids, mask, np.array([2, 0]), labels)
    # Against a finite difference in a random direction.
    rng = np.random.default_rng(0)
    way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), masked.params)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, w: (g * w).sum(), slopes, way)))
    near = [jax.tree.map(lambda p, w, s=s: p + s * w, masked.params, way) for s in (1e-3, -1e-3)]
    loss = jax.jit(lambda p: call(p, ids, mask, np.array([2, 0]), labels).loss)
    measured = (loss(near[0]) - loss(near[1])) / 2e-3
    assert float(measured) == pytest.approx(float(slope), rel=2e-2, abs=1e-2)


def test_padding_is_seen_inside_jit_too(masked, causal, ids):
    padded = ids.copy()
    padded[1, 5:] = 2
    left = np.concatenate([np.full((2, 3), 2), ids], 1)
    alone = {"masked": masked(ids).logits, "causal": causal(ids).logits}
    for given, model, expected in (
        (padded, masked, masked(ids, lengths=[7, 5]).logits),
        (left, causal, np.concatenate([np.zeros((2, 3, 53)), alone["causal"]], 1)),
    ):
        real = given != 2
        for found in (model(given), jax.jit(lambda i, model=model: model(i))(given)):
            close(found.logits[real], expected[real])
    assert far(masked(ids, lengths=[7, 5]).logits, alone["masked"])
    states = masked(padded, output_hidden_states=True).hidden_states
    assert all(not np.asarray(state)[1, 5:].any() for state in states)


# ---- languages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "langs",
    [
        ["fr", "de"],
        [2, 0],
        np.array([2, 0]),
        np.array(["fr", "de"]),
        jnp.asarray([[2], [0]]),
        [["fr"] * 7, [0] * 7],
    ],
    ids=["names", "ids", "array", "array of names", "column", "tokens"],
)
def test_every_way_to_say_the_languages(masked, ids, langs):
    expected = masked(ids, langs=np.array([[2] * 7, [0] * 7])).logits
    close(masked(ids, langs=langs).logits, expected, 1e-6)
    assert far(masked(ids).logits, expected)
    one = masked(ids, langs="fr").logits
    close(one[:1], expected[:1])
    assert far(one[1:], expected[1:])


def test_unknown_languages(masked, ids):
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows de, en, fr"):
        masked(ids, langs="xx")
    with pytest.raises(XlmfamError, match="langs holds 3; this model has 3 languages: de, en, fr"):
        masked(ids, langs=jnp.full((2, 7), 3))
    with pytest.raises(XlmfamError, match="langs must have shape"):
        masked(ids, langs=["de", "en", "fr"])
    with pytest.raises(XlmfamError, match="must hold names or ids"):
        masked(ids, langs=jnp.ones((2, 7)))


# ---- labelled positions only ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"causal": True}, ADAPTIVE])
def test_labelled_logits_are_those_of_the_whole(ids, labels, options):
    model = make_xlm(n_layers=1, **options)
    places = labels
    if options.get("causal"):
        places = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    # Labels that are no argument are not traced, and can be counted.
    some = jax.jit(lambda p: model(ids, labels=labels, params=p, labelled_logits_only=True))(
        model.params
    )

    def loss(params, labels, room):
        output = model(ids, labels=labels, params=params, labelled_logits_only=room)
        return output.loss, output.logits

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    (whole, logits), expected = compiled(model.params, labels, False)
    close(some.logits, logits[places != -100])
    close(some.loss, whole)
    (value, logits), slopes = compiled(model.params, labels, 8)
    assert logits.shape == (8, 53)
    close(logits[: len(some.logits)], some.logits)
    close(value, whole)
    jax.tree.map(close, slopes, expected)


def test_too_little_room_for_the_labels(masked, ids, labels):
    with pytest.raises(XlmfamError, match="labelled_logits_only=4, and there are 5 labels"):
        masked(ids, labels=labels, labelled_logits_only=4)
    with pytest.raises(XlmfamError, match="needs labels"):
        masked(ids, labelled_logits_only=True)
    with pytest.raises(XlmfamError, match="not the last one's"):
        masked(ids, labels=labels, last_logits_only=True)
    call = jax.jit(
        lambda labels, room: masked(ids, labels=labels, labelled_logits_only=room).loss,
        static_argnums=1,
    )
    with pytest.raises(XlmfamError, match="give a number, labelled_logits_only=N"):
        call(labels, True)
    # Where the labels cannot be counted, too many of them must not go unnoticed.
    assert np.isnan(call(labels, 4))
    close(call(labels, 6), masked(ids, labels=labels).loss)


# ---- caches ---------------------------------------------------------------------------------


@pytest.fixture
def text(ids):
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    return ids, mask, np.arange(14).reshape(2, 7) % 3


def of_tokens(values, mask, new=slice(None)):
    return np.asarray(values)[mask[:, new] == 1]


def in_steps(model, text, cache, params=None):
    """The logits of a text that comes in two parts, with a dict."""
    ids, mask, langs = text
    params = model.params if params is None else params
    return [
        model(ids[:, :end], mask[:, :end], langs[:, :end], cache=cache, params=params).logits
        for end in (4, 7)
    ]


def test_a_dict_in_place_and_inside_jit(causal, text):
    whole = causal(*text).logits
    cache = {"slen": 0}
    parts = in_steps(causal, text, cache)
    assert [part.shape[1] for part in parts] == [4, 3]
    close(of_tokens(jnp.concatenate(parts, 1), text[1]), of_tokens(whole, text[1]))
    assert cache["slen"] == 7
    assert type(cache["slen"]) is int
    assert cache[1][0].shape == (2, 4, 7, 6)

    @jax.jit
    def compiled(params, *text):
        cache = {"slen": 0}
        parts = in_steps(causal, text, cache, params)
        assert cache.pop("slen") == 7
        return jnp.concatenate(parts, 1), cache

    logits, layers = compiled(causal.params, *text)
    close(of_tokens(logits, text[1]), of_tokens(whole, text[1]))
    jax.tree.map(close, layers, {layer: cache[layer] for layer in (0, 1)})
    # On from there, outside.
    longer = (np.pad(x, ((0, 0), (0, 1)), mode="edge") for x in text)
    again = {"slen": 7, **layers}
    assert causal(*longer, cache=again).logits.shape == (2, 1, 53)
    with pytest.raises(XlmfamError, match="with a Python integer"):
        jax.jit(lambda n: causal(text[0], cache={"slen": n}).logits)(0)


def test_buffers(causal, text):
    ids, mask, langs = text
    whole = causal(*text).logits
    wide = np.pad(mask, ((0, 0), (0, 2)), constant_values=1)
    step = jax.jit(
        lambda p, i, langs, c: causal(i, wide, langs, cache=c, params=p), donate_argnums=3
    )
    cache, parts = causal.init_cache(2, 9), []
    for at in range(7):
        new = slice(at, at + 1)
        output = step(causal.params, ids[:, new], langs[:, new], cache)
        cache = output.past_key_values
        parts.append(output.logits)
    assert step._cache_size() == 1  # the length is an array
    assert isinstance(cache, KeyValueCache)
    assert int(cache.length) == 7
    close(of_tokens(jnp.concatenate(parts, 1), mask), of_tokens(whole, mask))
    for width in (7, 9):  # a mask of what is there, and one as long as the buffers
        first = causal(ids[:, :4], wide[:, :4], langs[:, :4], cache=causal.init_cache(2, 9))
        rest = causal(ids[:, 4:], wide[:, :width], langs[:, 4:], cache=first.past_key_values)
        close(of_tokens(rest.logits, mask, slice(4, 7)), of_tokens(whole[:, 4:], mask[:, 4:]))
    with pytest.raises(XlmfamError, match="holds 9 tokens, 10 are needed"):
        causal(ids[:, :3], cache=rest.past_key_values)
    with pytest.raises(XlmfamError, match="attention_mask must have shape"):
        causal(ids[:, :1], mask[:, :6], cache=rest.past_key_values)
    plain = XLMModel(causal.config, _do_init=False)
    last = plain(ids[:, :2], cache=causal.init_cache(2, 2), params=causal.params["transformer"])
    assert int(last.past_key_values.length) == 2


def test_caches_that_cannot_be(masked, causal, ids):
    cache = {"slen": 0}
    masked(ids[:, :4], cache=cache)
    with pytest.raises(XlmfamError, match="a filled cache needs a causal model"):
        masked(ids, cache=cache)
    with pytest.raises(XlmfamError, match="a KeyValueCache needs a causal model"):
        masked(ids, cache=masked.init_cache(2, 9))
    cache = {"slen": 0}
    causal(ids, cache=cache)
    with pytest.raises(XlmfamError, match="nothing is new"):
        causal(ids, cache=cache)
    with pytest.raises(XlmfamError, match="must be a dict that begins as"):
        causal(ids, cache={})
    twice = np.concatenate([ids, ids], 1)
    with pytest.raises(XlmfamError, match="labels need the whole text at once"):
        causal(twice, cache=cache, labels=twice)
    classifier = make_xlm("XLMForSequenceClassification", causal=True)
    with pytest.raises(XlmfamError, match="give a dict as its cache"):
        classifier(ids, cache=causal.init_cache(2, 9))


def test_a_source_is_projected_once(ids):
    model = make_xlm(is_encoder=False)
    states = np.random.default_rng(5).normal(size=(2, 5, 24)).astype(np.float32)
    source = {"src_enc": states, "src_len": np.array([5, 2])}
    whole = model(ids, **source, output_attentions=True)
    assert whole.cross_attentions[1].shape == (2, 4, 7, 5)
    assert not np.asarray(whole.cross_attentions[0])[1, ..., 2:].any()
    other = {**source, "src_enc": states * 0}
    cache = {"slen": 0}
    model(ids[:, :6], cache=cache, **source)
    assert len(cache[0]) == 4
    close(model(ids, cache=cache, **other).logits, whole.logits[:, 6:])
    first = model(ids[:, :6], cache=model.init_cache(2, 7), **source)
    last = model(ids[:, 6:], cache=first.past_key_values, **other)
    close(last.logits, whole.logits[:, 6:])


# ---- training -------------------------------------------------------------------------------


def test_dropout_follows_the_key(ids, labels):
    model = make_xlm(dropout=0.3, attention_dropout=0.2, n_layers=1)

    def loss(params, key):
        return model(ids, labels=labels, params=params, train=True, dropout_rng=key).loss

    step = jax.jit(jax.value_and_grad(loss))
    first, again, other = (step(model.params, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(lambda a, b: close(a, b, 0), first, again)
    assert far(first[0], other[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    with pytest.raises(XlmfamError, match="dropout_rng"):
        model(ids, train=True)
    summary = make_xlm("XLMForSequenceClassification", summary_first_dropout=0.5)
    with pytest.raises(XlmfamError, match="dropout_rng"):
        summary(ids, train=True)
    dropped = summary(ids, train=True, dropout_rng=jax.random.key(0)).logits
    assert far(dropped, summary(ids).logits)


def test_gradient_checkpointing_changes_no_gradient(ids, labels):
    model = make_xlm(causal=True)
    mask = np.ones_like(ids)
    mask[1, 5:] = 0

    def loss(params):
        return model(ids, mask, "en", labels=labels, params=params, train=True).loss

    plain = jax.jit(jax.grad(loss))(model.params)
    model.gradient_checkpointing_enable()
    assert "remat" in str(jax.make_jaxpr(lambda p: loss(p))(model.params))
    jax.tree.map(close, jax.jit(jax.grad(lambda p: loss(p)))(model.params), plain)
    model.gradient_checkpointing_disable()
    assert "remat" not in str(jax.make_jaxpr(lambda p: loss(p))(model.params))


def test_sinusoids_are_never_learned(ids, labels):
    model = make_xlm(sinusoidal_embeddings=True, n_layers=1)
    drawn = XLMModel(XLMConfig(**{**model.config.to_dict()}), seed=3)
    table = drawn.params["position_embeddings"]["embedding"]
    close(table, interleaved_sinusoids(37, 24), 1e-6)
    slopes = jax.jit(jax.grad(lambda p: model(ids, labels=labels, params=p).loss))(model.params)
    assert not slopes["transformer"]["position_embeddings"]["embedding"].any()
    assert slopes["transformer"]["lang_embeddings"]["embedding"].shape == (3, 24)
    name = "transformer.position_embeddings." + "weight"
    assert name not in model.to_canonical(slopes)
    assert name not in model.decay_parameters()
    assert name in model.to_canonical()
    learned = make_xlm(n_layers=1)
    slopes = jax.jit(jax.grad(lambda p: learned(ids, labels=labels, params=p).loss))(learned.params)
    assert slopes["transformer"]["position_embeddings"]["embedding"].any()


def test_padding_is_not_learned_where_it_is_read(ids):
    model = make_xlm("XLMModel", n_layers=1)
    given = ids.copy()
    given[0, 3] = 2
    mask = np.ones_like(ids)
    states = jax.jit(jax.grad(lambda p: model(given, mask, params=p)[0][:, 1].sum()))
    slopes = states(model.params)["embeddings"]["embedding"]
    assert not slopes[2].any()
    assert slopes[int(ids[0, 0])].any()


# ---- precision ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "dtype"),
    [
        ("XLMWithLMHeadModel", "bfloat16"),
        ("XLMWithLMHeadModel", "float16"),
        ("XLMForSequenceClassification", "bfloat16"),
        ("XLMForQuestionAnswering", "float16"),
    ],
)
def test_half_precision_is_finite_and_near(ids, class_name, dtype, run_jitted):
    model = make_xlm(class_name, n_layers=1, start_n_top=2, end_n_top=2)
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    more = {"p_mask": 1 - mask} if class_name == "XLMForQuestionAnswering" else {}
    small = type(model)(model.config, dtype=dtype, _do_init=False)
    params = {"bfloat16": model.to_bf16, "float16": model.to_fp16}[dtype](model.params)
    output = jax.jit(lambda p: small(ids, mask, params=p, **more))(params)
    for value in jax.tree.leaves(output):
        assert np.isfinite(np.asarray(value, np.float32)).all()
    close(output[0], run_jitted(model, ids, mask, **more)[0], 0.15)
    if class_name == "XLMWithLMHeadModel":
        assert output.logits.dtype == dtype
        assert small.init_cache(1, 4).keys[0].dtype == dtype
        nothing = jax.jit(lambda p: small(ids, np.zeros_like(ids), params=p).logits)(params)
        assert np.isfinite(np.asarray(nothing, np.float32)).all()
