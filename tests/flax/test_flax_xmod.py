"""X-MOD in Flax: languages, caches, labels, transformations of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from flax_helpers import randomise
from tolerances import MODEL

from xlmfam import flax
from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters import layout_shape, spell
from xlmfam.flax.xmod_adapters import Languages, pick

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 1,  # what layers have in common the golden numbers show
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 37,
    "adapter_reduction_factor": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "languages": ["de", "en", "fr", "sw"],
}
BATCH, LENGTH = 3, 6
MIXED = [3, 3, 1]  # sorting it is not its own inverse


def build(class_name="XmodForMaskedLM", seed=1, **options):
    config = flax.XmodConfig(**{**SIZES, **options})
    return randomise(getattr(flax, class_name)(config), seed)


def close(came, expected, tolerance=MODEL):
    came, expected = np.asarray(came, np.float32), np.asarray(expected, np.float32)
    assert came.shape == expected.shape
    assert np.abs(came - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-3)


def far(came, other):
    assert np.abs(np.asarray(came) - np.asarray(other)).max() > 1e-3


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(3).integers(3, 61, (BATCH, LENGTH))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def one_at_a_time(model, ids):
    """The logits of MIXED, each sample by itself in its language."""
    call = jax.jit(lambda row, lang: model(row, lang_ids=lang).logits, static_argnames="lang")
    return np.concatenate([call(ids[i : i + 1], lang=lang) for i, lang in enumerate(MIXED)])


@pytest.fixture(scope="module")
def traced(model):
    """A call whose languages are not known while compiling."""
    return jax.jit(lambda ids, langs: model(ids, lang_ids=langs).logits)


@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("XmodModel", {"pre_norm": True, "adapter_layer_norm": True}),
        ("XmodForCausalLM", {"is_decoder": True, "add_cross_attention": True}),
        (
            "XmodForMaskedLM",
            {"tie_word_embeddings": False, "position_embedding_type": "relative_key"},
        ),
        ("XmodForMultipleChoice", {}),
        ("XmodForSequenceClassification", {"num_labels": 3}),
    ],
)
def test_the_tree_is_the_tables(class_name, options):
    model = getattr(flax, class_name)(flax.XmodConfig(**{**SIZES, **options}), _do_init=False)
    more = {}
    if options.get("is_decoder"):
        more = {"encoder_hidden_states": jnp.zeros((1, 2, 24))}
    ids = jnp.ones((1, 1), int)
    made = jax.eval_shape(
        lambda: model.module.init(
            jax.random.key(0), ids, languages=Languages(("en",)), position_ids=ids, **more
        )
    )
    found = {"/".join(path): leaf.shape for path, leaf in flatten_dict(made["params"]).items()}
    rows = [row for row in model.expected_parameters().values() if row.tied_to is None]
    assert found == {spell(row, "flax"): layout_shape(row, "flax") for row in rows}


# ---- languages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "langs",
    [
        ["sw", "sw", "en"],
        MIXED,
        np.array(MIXED),
        jnp.array(MIXED),
        np.array(MIXED)[:, None],
        [["sw"] * LENGTH, [3] * LENGTH, ["en"] * LENGTH],
        jnp.broadcast_to(jnp.array(MIXED)[:, None], (BATCH, LENGTH)),
    ],
    ids=["codes", "list", "numpy", "jax", "column", "tokens", "jax tokens"],
)
def test_a_mixed_batch_is_each_sample_alone(model, ids, one_at_a_time, langs):
    close(jax.jit(lambda i: model(i, lang_ids=langs).logits)(ids), one_at_a_time)


def test_languages_that_are_traced(model, ids, one_at_a_time, traced):
    close(traced(ids, np.array(MIXED)), one_at_a_time)
    close(traced(ids, np.array([0, 1, 1]))[2], one_at_a_time[2])
    assert traced._cache_size() == 1
    tokens = np.broadcast_to(np.array(MIXED)[:, None], ids.shape)
    close(traced(ids, tokens), one_at_a_time)
    each = jax.vmap(lambda row, lang: model(row[None], lang_ids=lang).logits[0])
    close(jax.jit(each)(ids, jnp.array(MIXED)), one_at_a_time)
    known = jax.vmap(lambda rows: model(rows, lang_ids=MIXED).logits)
    close(jax.jit(known)(np.stack([ids, ids]))[1], one_at_a_time)


def test_picking_moves_nothing_else():
    every = tuple(jnp.full((2, 3), float(index)) for index in range(5))
    ids = jnp.array([4, 0, 4])
    expected = jnp.stack(every)[ids]
    close(jax.jit(pick)(ids, every), expected, 0)
    assert "concatenate" not in jax.jit(pick).lower(ids, every).compile().as_text()
    _, tangent = jax.jit(lambda e: jax.jvp(lambda e: pick(ids, e), (e,), (e,)))(every)
    close(tangent, expected, 0)
    gradients = jax.jit(jax.grad(lambda e: pick(ids, e).sum()))(every)
    assert [float(x[0, 0]) for x in gradients] == [1, 0, 0, 0, 2]


def test_a_language_for_each_token(model, ids, traced):
    tokens = np.random.default_rng(5).integers(0, 4, ids.shape)
    known = jax.jit(lambda i: model(i, lang_ids=tokens).logits)(ids)
    close(known, traced(ids, tokens))
    # The first layer's adapters see nothing of other tokens' languages: the rest follows.
    states = model(ids, lang_ids=tokens, output_hidden_states=True).hidden_states
    for lang in range(4):
        alone = model(ids, lang_ids=lang, output_hidden_states=True).hidden_states
        close(states[1][tokens == lang], alone[1][tokens == lang])
    one_row = jax.jit(lambda i: model(i, lang_ids=tokens[:1]).logits)(ids)
    close(one_row[0], known[0])
    far(one_row[1], known[1])


def test_the_default_language(ids, one_at_a_time):
    model = build()
    with pytest.raises(XlmfamError, match=r"give lang_ids, .* one of de, en, fr, sw"):
        model(ids)
    model.set_default_language("en")
    close(model(ids).logits[2], one_at_a_time[2])
    model.set_default_language("sw")
    close(model(ids).logits[:2], one_at_a_time[:2])
    close(model(ids, lang_ids="en").logits[2], one_at_a_time[2])
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows de, en, fr"):
        model.set_default_language("xx")
    assert model.config.default_language == "sw"


def test_only_the_adapters_that_occur_are_read(model, ids, one_at_a_time):
    """What stands in the others does not matter: they could be anything."""
    spoilt = {
        path: value * jnp.nan if {"de", "fr"} & set(path) else value
        for path, value in flatten_dict(model.params).items()
    }
    params = unflatten_dict(spoilt)
    close(jax.jit(lambda p: model(ids, lang_ids=MIXED, params=p).logits)(params), one_at_a_time)
    # Nor is anything computed with them.
    jaxpr = jax.make_jaxpr(lambda p: model(ids, lang_ids=MIXED, params=p).logits)(params).jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    assert sum(id(variable) not in read for variable in jaxpr.invars) == 2 * 4


def test_gradients_of_a_mixed_batch(ids):
    model = build()
    labels = np.where(ids % 2, ids, -100)

    def loss(params, langs):
        return model(ids, lang_ids=langs, labels=labels, params=params).loss

    def alone(params):
        counts = (labels != -100).sum(-1)
        losses = [
            model(ids[i : i + 1], lang_ids=lang, labels=labels[i : i + 1], params=params).loss
            for i, lang in enumerate(MIXED)
        ]
        return sum(n * x for n, x in zip(counts, losses, strict=True)) / counts.sum()

    expected = model.to_canonical(jax.jit(jax.grad(alone))(model.params))
    largest = max(np.abs(value).max() for value in expected.values())
    tokens = np.broadcast_to(np.array(MIXED)[:, None], ids.shape)
    found = [
        jax.jit(jax.grad(lambda p: loss(p, MIXED)))(model.params),
        jax.jit(jax.grad(loss))(model.params, np.array(MIXED)),
        jax.jit(jax.grad(loss))(model.params, tokens),
    ]
    for gradients in map(model.to_canonical, found):
        for name, value in expected.items():
            assert np.abs(gradients[name] - value).max() < MODEL * largest, name
            if {"de", "fr"} & set(name.split(".")):
                assert not gradients[name].any(), name


def test_choices_take_a_language_each(ids):
    model = build("XmodForMultipleChoice")
    choices = np.stack([ids, ids[:, ::-1]], 1)
    by_choice = np.array([[0, 2], [1, 1], [3, 0]])

    def call(langs):
        return jax.jit(lambda c: model(c, lang_ids=langs).logits)(choices)

    expected = call(np.broadcast_to(by_choice[..., None], choices.shape))
    close(call(by_choice), expected)
    found = jax.jit(lambda c, langs: model(c, lang_ids=langs).logits)(choices, by_choice)
    close(found, expected)
    by_sample = call(["de", "en", "sw"])
    close(by_sample[1], expected[1])
    far(by_sample, expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lang_ids": "xx"}, "unknown language 'xx'; this model knows de, en, fr, sw"),
        ({"lang_ids": [0, 4, 1]}, "lang_ids holds 4; this model has 4 languages: de, en, fr, sw"),
        ({"lang_ids": [0, -1, 1]}, "lang_ids holds -1"),
        ({"lang_ids": ["de", "en"]}, "lang_ids must have shape"),
        ({"lang_ids": jnp.zeros(3)}, "codes or numbers"),
        ({"attention_mask": np.ones((3, 6, 5))}, "attention_mask must have shape"),
        ({"position_ids": np.full((1, 6), 37)}, "position_ids holds 37"),
        ({"token_type_ids": np.full((3, 6), 2)}, "token_type_ids holds 2"),
        ({"head_mask": np.ones(3)}, "head_mask"),
        ({"labels": np.full((3, 5), 4)}, "labels"),
        ({"labels": np.full((3, 6), 61)}, "labels holds 61"),
        ({"labelled_logits_only": True}, "needs labels"),
        ({"input_ids": np.full((3, 6), 61)}, "input_ids holds 61"),
        ({"input_ids": np.full((3, 36), 5)}, r"position_ids holds 37, outside \[0, 36\]"),
        ({"inputs_embeds": np.ones((3, 6, 24))}, "both"),
    ],
)
def test_errors_before_any_compute(model, ids, kwargs, message):
    with pytest.raises(XlmfamError, match=message):
        model(**{"input_ids": ids, "lang_ids": "en", **kwargs})


def test_errors_of_decoders(model, ids):
    past = ((np.zeros((3, 4, 2, 6)),) * 2,)
    encoder = build("XmodModel")
    with pytest.raises(XlmfamError, match="past_key_values needs a decoder"):
        encoder(ids, "en", past_key_values=past)
    decoder = build("XmodForCausalLM", is_decoder=True, position_embedding_type="relative_key")
    with pytest.raises(XlmfamError, match="needs a model with cross-attention"):
        decoder(ids, "en", encoder_hidden_states=np.zeros((3, 2, 24)))
    with pytest.raises(XlmfamError, match="the text has 38 tokens"):
        decoder(np.full((1, 38), 5), "en")
    with pytest.raises(XlmfamError, match=r"attention_mask must have shape \(3, 8\)"):
        decoder(ids, "en", np.ones((3, 6)), past_key_values=past)
    with pytest.raises(XlmfamError, match="not the last one's"):
        decoder(ids, "en", labels=ids, last_logits_only=True)


# ---- caches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["absolute", "relative_key_query"])
def test_both_caches_give_what_the_whole_gives(ids, kind):
    model = build(
        "XmodForCausalLM",
        is_decoder=True,
        add_cross_attention=kind == "absolute",
        position_embedding_type=kind,
    )
    encoder = {}
    if kind == "absolute":
        states = np.random.default_rng(5).normal(size=(3, 5, 24)).astype(np.float32)
        encoder = {
            "encoder_hidden_states": states,
            "encoder_attention_mask": np.array([[1] * 5, [1, 1, 0, 0, 0], [1] * 5]),
        }
    padded, mask = ids.copy(), np.ones_like(ids)
    padded[1, :2], mask[1, :2] = 1, 0
    call = jax.jit(
        lambda i, m, past: model(i, MIXED, m, past_key_values=past, use_cache=True, **encoder)
    )
    whole = jax.jit(lambda i: model(i, MIXED, mask, **encoder).logits)(padded)
    alone = model(ids[1:2, 2:], MIXED[1], **{k: v[1:2] for k, v in encoder.items()}).logits
    close(whole[1, 2:], alone[0])
    plain, buffer = None, model.init_cache(3, 8)
    for start, end in ((0, 4), (4, 5), (5, 6)):
        new = slice(start, end)
        seen = mask[:, new] == 1
        step = call(padded[:, new], mask[:, :end], plain)
        plain = step.past_key_values
        close(step.logits[seen], whole[:, new][seen])
        step = call(padded[:, new], mask[:, :end], buffer)
        buffer = step.past_key_values
        close(step.logits[seen], whole[:, new][seen])
    assert int(buffer.length) == plain[0][0].shape[2] == 6
    with pytest.raises(XlmfamError, match="holds 8 tokens"):
        model(ids[:, :3], MIXED, past_key_values=buffer)


def test_what_each_token_sees(ids):
    model = build("XmodForCausalLM", is_decoder=True)
    causal = np.broadcast_to(np.tril(np.ones((6, 6), int)), (3, 6, 6))
    call = jax.jit(lambda i, m, past: model(i, "en", m, past_key_values=past))
    whole = call(ids, None, None)
    close(call(ids, causal, None).logits, whole.logits)
    first = call(ids[:, :4], causal[:, :4, :4], model.init_cache(3, 9)).past_key_values
    close(call(ids[:, 4:], causal[:, 4:], first).logits, whole.logits[:, 4:])
    far(call(ids, np.ones((3, 6, 6), int), None).logits, whole.logits)


# ---- labels, dtypes, dropout ----------------------------------------------------------------


def test_labelled_logits_are_those_of_the_whole(model, ids):
    labels = np.where(ids % 2, ids, -100)
    count = int((labels != -100).sum())

    def call(labels, room):
        return model(ids, "en", labels=labels, labelled_logits_only=room)

    whole, some = call(labels, False), call(labels, True)
    assert some.logits.shape == (count, 61)
    close(some.logits, whole.logits[labels != -100])
    close(some.loss, whole.loss)
    fixed = jax.jit(lambda x: call(x, count + 2))(labels)
    close(fixed.logits[:count], some.logits)
    close(fixed.loss, whole.loss)
    with pytest.raises(XlmfamError, match=f"there are {count} labels"):
        call(labels, count - 1)
    assert np.isnan(jax.jit(lambda x: call(x, count - 1))(labels).loss)


def test_probabilities_of_hidden_words(model, ids):
    mask = np.ones_like(ids)
    found = model.mask_probabilities(ids, mask, ["sw", "sw", "en"], [0, 2], [2, 5])
    scores = jax.nn.softmax(model(ids, MIXED).logits, -1)
    close(found, scores[np.array([0, 2]), np.array([2, 5])])


def test_low_precision(model, ids, one_at_a_time):
    dtype = "bfloat16"
    small = flax.XmodForMaskedLM(model.config, dtype=dtype, _do_init=False)
    params = model.to_bf16(model.params)
    call = jax.jit(lambda p, langs, m: small(ids, langs, m, params=p).logits)
    found = call(params, np.array(MIXED), np.zeros_like(ids))
    assert found.dtype == dtype
    assert np.isfinite(np.asarray(found, np.float32)).all()
    close(call(params, np.array(MIXED), np.ones_like(ids)), one_at_a_time, 0.1)
    tokens = np.broadcast_to(np.array(MIXED)[:, None], ids.shape)
    close(call(params, tokens, np.ones_like(ids)), one_at_a_time, 0.1)
    grouped = jax.jit(lambda p: small(ids, MIXED, params=p).logits)(params)
    assert grouped.dtype == dtype
    close(grouped, one_at_a_time, 0.1)


def test_gradient_checkpointing_changes_no_gradient(ids):
    model = build()

    def loss(params, langs):
        return model(ids, langs, labels=ids, params=params, train=True).loss

    plain = jax.jit(jax.grad(loss))(model.params, np.array(MIXED))
    model.gradient_checkpointing_enable()
    assert "remat" in str(jax.make_jaxpr(lambda p: loss(p, MIXED))(model.params))
    again = jax.jit(jax.grad(lambda p, x: loss(p, x)))(model.params, np.array(MIXED))
    jax.tree.map(close, again, plain)
    jax.tree.map(close, jax.jit(jax.grad(lambda p: loss(p, MIXED)))(model.params), plain)


def test_dropout_follows_the_key(ids):
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    model = build("XmodForSequenceClassification", num_labels=3, **rates)
    call = jax.jit(lambda k: model(ids, "en", train=True, dropout_rng=k).logits)
    first, again, other = (call(jax.random.key(seed)) for seed in (0, 0, 1))
    close(first, again, 0)
    far(first, other)
    with pytest.raises(XlmfamError, match="dropout_rng"):
        model(ids, "en", train=True)
    # The rate before the classifier is one of its own.
    only = build("XmodForSequenceClassification", num_labels=3, classifier_dropout=0.5)
    evaluated = only(ids, "en").logits
    found = only(ids, "en", train=True, dropout_rng=jax.random.key(1), output_hidden_states=True)
    close(found.hidden_states[-1], only(ids, "en", output_hidden_states=True).hidden_states[-1])
    far(found.logits, evaluated)


def test_without_the_pooling_layer(tmp_path, ids):
    model = build("XmodModel", default_language="en")
    assert model(ids).pooler_output.shape == (3, 24)
    model.save_pretrained(tmp_path)
    bare, info = flax.XmodModel.from_pretrained(
        tmp_path, add_pooling_layer=False, output_loading_info=True
    )
    assert "pooler" not in bare.params
    assert info["missing_keys"] == []
    found = bare(ids)
    assert found.pooler_output is None
    close(found.last_hidden_state, model(ids).last_hidden_state)
    assert flax.FlaxXmodModel is flax.XmodModel
