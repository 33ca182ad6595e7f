"""Transformer-XL in Flax: memories, left padding, projected memories, clusters, training."""

from functools import lru_cache

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from backends import get_backend
from tolerances import LAYER, MODEL

from xlmfam import flax
from xlmfam.common.errors import XlmfamError
from xlmfam.flax import transfo_xl_clusters
from xlmfam.flax.transfo_xl_clusters import AdaptiveSoftmax, Words

SIZES = {
    "vocab_size": 53,
    "cutoffs": [11, 28],
    "d_model": 18,
    "d_embed": 12,
    "n_head": 3,
    "d_head": 5,
    "d_inner": 23,
    "div_val": 2,
    "n_layer": 2,
    "mem_len": 6,
    "clamp_len": 3,
    "num_labels": 7,
    "dropout": 0.0,
}
OTHER = {
    "pre_lnorm": True,
    "same_length": False,
    "div_val": 1,
    "untie_r": False,
    "clamp_len": -1,
    "n_layer": 1,
}
KINDS = [{}, OTHER]
LM = "TransfoXLLMHeadModel"


def fresh(class_name=LM, **options):
    config = flax.TransfoXLConfig(**{**SIZES, **options})
    model = getattr(flax, class_name)(config, _do_init=False)
    rng = np.random.default_rng(5)

    def draw(path, leaf):
        # Norms with a bias of one would make all positions alike.
        return jnp.asarray(rng.normal(path[-1].key == "scale", 0.4, leaf.shape), leaf.dtype)

    model.params = jax.tree_util.tree_map_with_path(draw, model.params_shape_tree)
    return model


@lru_cache
def _built(class_name, options):
    return fresh(class_name, **dict(options))


def build(class_name=LM, **options):
    """A model that several tests share."""
    return _built(class_name, tuple(options.items()))


@lru_cache
def compiled(model):
    """The model as a compiled function of ids, mems and mask, with arrays of NumPy.

    Indexing an array of JAX's compiles something for every shape.
    """
    run = jax.jit(lambda ids, mems=None, mask=None: model(ids, mems, attention_mask=mask))
    return lambda *given: jax.device_get(run(*given))


def words(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 53, shape)


def memories(rows, length=6, layers=2):
    rng = np.random.default_rng(2)
    return [jnp.asarray(rng.normal(size=(length, rows, 18)), jnp.float32) for _ in range(layers)]


def error(came, expected):
    came, expected = np.asarray(came, np.float32), np.asarray(expected, np.float32)
    assert came.shape == expected.shape
    return np.abs(came - expected).max() / np.abs(expected).max()


def padded(lengths, length, seed=1):
    """Ids and mask of rows of unequal length, padded on the left with a word like any other."""
    ids = words(len(lengths), length, seed=seed)
    return ids, (np.arange(length) >= length - np.array(lengths)[:, None]).astype(np.int32)


# ---- padding on the left --------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS)
def test_rows_of_unequal_length_are_each_row_alone(options):
    call, lengths = compiled(build(**options)), (2, 5)
    mems, alone = None, [None, None]
    for seed in (1, 2):  # from nothing, then from mems
        ids, mask = padded(lengths, 5, seed)
        together = call(ids, mems, mask)
        for row, length in enumerate(lengths):
            own = call(ids[row : row + 1, -length:], alone[row])
            scores = together.prediction_scores[row, -length:]
            assert error(scores, own.prediction_scores[0]) < MODEL
            for one, other in zip(together.mems, own.mems, strict=True):
                assert error(one[:, row], other[:, 0]) < MODEL
            alone[row] = own.mems
        mems = together.mems


def test_losses_and_classes_of_rows_of_unequal_length():
    ids, mask = padded((2, 5), 5)
    model, classifier = build(), build("TransfoXLForSequenceClassification", pad_token_id=52)

    @jax.jit
    def both(ids, labels, mask=None):
        losses = model(ids, labels=labels, attention_mask=mask).losses
        return losses, classifier(ids % 52, attention_mask=mask).logits

    losses, logits = jax.device_get(both(ids, np.where(mask == 1, ids, -100), mask))
    assert not np.any(losses[0, :2])  # labels of padding
    for row, length in enumerate((2, 5)):
        own = ids[row : row + 1, -length:]
        alone, own_logits = jax.device_get(both(own, own))
        assert error(losses[row, 1 - length :], alone[0]) < MODEL
        assert error(logits[row], own_logits[0]) < MODEL


def test_padding_that_cannot_be():
    model, (ids, mask) = build(), padded((2, 5), 5)
    with pytest.raises(XlmfamError, match="padding on the left"):
        model(ids, attention_mask=mask[:, ::-1])
    short = memories(2, 4)
    wanted = "need mems of the whole memory, 6: these have 4"
    with pytest.raises(XlmfamError, match=wanted):
        model(ids, short, attention_mask=mask)
    with pytest.raises(XlmfamError, match=wanted):
        model.generate(ids, mask, mems=short, max_new_tokens=2)


# ---- memories as keys and values ------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS)
def test_projected_memories_are_exact(options):
    model = build(**options)
    call = compiled(model)
    cache, mems, turns = model.init_cache(2), model.init_mems(2), 0
    for number, length in enumerate((1, 1, 8, *[1] * 24)):
        ids, before = words(2, length, seed=number), int(cache.at)
        came, expected = call(ids, cache), call(ids, mems)
        assert error(came.prediction_scores, expected.prediction_scores) < LAYER
        cache, mems = came.mems, expected.mems
        turns += length == 1 and int(cache.at) <= before
    assert turns > 2
    assert cache.slots == 6 + (not model.config.same_length)


def test_a_projected_memory_takes_over_mems_and_padding():
    model, (ids, mask) = build(**OTHER), padded((2, 5), 5)
    call, mems = compiled(model), memories(2, layers=1)
    came, expected = call(ids, model.init_cache(2, mems=mems), mask), call(ids, mems, mask)
    seen = mask.astype(bool)
    assert error(came.prediction_scores[seen], expected.prediction_scores[seen]) < LAYER
    after = words(2, 1, seed=6)
    came, expected = call(after, came.mems), call(after, expected.mems)
    assert error(came.prediction_scores, expected.prediction_scores) < LAYER
    short = memories(2, 4, 1)
    came, expected = call(after, model.init_cache(2, mems=short)), call(after, short)
    assert error(came.prediction_scores, expected.prediction_scores) < LAYER


@pytest.mark.parametrize("length", [1, 3])
def test_a_projected_memory_has_no_gradients(length):
    model = build()
    cache = model.init_cache(2)

    def loss(params, ids):
        return model.token_losses(ids, ids, cache, params=params)[0].sum()

    with pytest.raises(XlmfamError, match="no gradients"):
        jax.eval_shape(jax.grad(loss), model.params, words(2, length))
    jax.eval_shape(loss, model.params, words(2, length))


def test_projected_memories_that_do_not_fit():
    model = fresh()
    cache = model.init_cache(2)
    with pytest.raises(XlmfamError, match="has 2 rows, the inputs have 3"):
        model(words(3, 3), cache)
    with pytest.raises(XlmfamError, match="one for each of 2 layers, got 1"):
        model.init_cache(2, mems=memories(2)[:1])
    with pytest.raises(XlmfamError, match="not projected"):
        model.generate(words(2, 3), mems=cache, max_new_tokens=2)
    model.reset_memory_length(7)
    with pytest.raises(XlmfamError, match="room for 6 tokens, 7 are needed"):
        model(words(2, 3), cache)


# ---- generation -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS)
def test_generation_goes_on_from_mems(options):
    model, (ids, mask) = build(**options), padded((3, 6), 6)
    mems = memories(2, layers=model.config.n_layer)
    head_mask = jnp.asarray([1.0, 0.0, 1.0])

    @jax.jit
    def last(ids, mems, mask):
        output = model(ids, mems, head_mask, attention_mask=mask)
        return output.prediction_scores[:, -1], output.mems

    arguments = {"mems": mems, "head_mask": head_mask, "eos_token_id": None, "pad_token_id": 0}
    arguments |= {"output_scores": True, "return_dict_in_generate": True}
    # Drawn tokens are of all kinds; the best ones soon repeat themselves.
    came = model.generate(ids, mask, max_new_tokens=15, do_sample=True, top_k=0, **arguments)
    tokens = np.asarray(came.sequences)
    for step, scores in enumerate(came.scores):
        expected, mems = last(ids, mems, mask if step == 0 else None)
        assert error(scores, expected) < MODEL
        ids = tokens[:, 6 + step : 7 + step]


def test_beams_with_a_memory_and_without():
    # With one length for all, reading the text again behind a memory that stands still is the same.
    model, (ids, mask) = build(mem_len=20, clamp_len=-1, n_layer=1), padded((2, 4, 3), 4)
    options = {"num_beams": 3, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    options |= {"do_sample": True, "mems": memories(3, 20, 1), "num_return_sequences": 2}
    came = model.generate(ids, mask, **options)
    assert np.array_equal(came, model.generate(ids, mask, use_cache=False, **options))


def test_generation_inside_jit():
    model, ids = build(n_layer=1), words(2, 4)
    options = {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
    run = jax.jit(lambda ids, params: model.generate(ids, params=params, **options))
    assert np.array_equal(run(ids, model.params), model.generate(ids, **options))


# ---- clusters -------------------------------------------------------------------------------


def softmax_of(model, more=0.0):
    """The softmax by itself: a function of a method's name and its arguments.

    Args:
        model: Has the parameters.
        more: Added to the scores of the tail clusters.
    """
    embedding = model.get_input_embeddings()
    tables = embedding["emb_layers"].items()
    shared = Words(
        tuple(table["embedding"] for _, table in sorted(tables)),
        tuple(table for _, table in sorted(embedding.get("emb_projs", {}).items())),
    )
    module = AdaptiveSoftmax(model.config)
    crit = model.params["crit"]
    params = {"params": {**crit, "cluster_bias": crit["cluster_bias"] + more}}
    return lambda method, *arguments: module.apply(params, *arguments, shared, method=method)


@pytest.mark.parametrize("options", [{}, {"div_val": 1}])
def test_clusters_that_cannot_win_are_skipped(options):
    softmax = softmax_of(build(**options), 4.0)
    states = jnp.asarray(np.random.default_rng(3).normal(size=(60, 1, 18)), jnp.float32)

    def run(method):
        return np.asarray(jax.jit(jax.vmap(lambda x: softmax(method, x)))(states))[:, 0]

    every, some = run("log_prob"), run("greedy_scores")
    assert np.array_equal(every.argmax(-1), some.argmax(-1))
    assert 0.2 < (every.argmax(-1) >= 11).mean() < 0.8
    seen = some > np.finfo(np.float32).min
    assert 0.2 < seen[:, [11, 28]].mean() < 0.8
    assert error(some[seen], every[seen]) < LAYER


def test_greedy_search_skips_and_other_options_do_not(monkeypatch):
    asked = []

    def spy(self, hidden, words):
        asked.append(1)
        return self.log_prob(hidden, words)

    monkeypatch.setattr(AdaptiveSoftmax, "greedy_scores", spy)
    model, ids = fresh(n_layer=1), words(1, 3)

    def looks(**options):
        asked.clear()
        trace = lambda ids: model.generate(ids, max_new_tokens=2, **options)  # noqa: E731
        jax.eval_shape(trace, ids)
        return not asked

    assert not looks()
    assert looks(do_sample=True)
    assert looks(num_beams=2)
    assert looks(min_new_tokens=2)
    assert looks(repetition_penalty=1.2)
    assert looks(output_scores=True, return_dict_in_generate=True)
    assert looks(logits_processor=[lambda ids, scores, column: scores])


@pytest.mark.parametrize("options", [{}, {"div_val": 1, "tie_word_embeddings": False}])
def test_losses_where_targets_cannot_be_looked_at(options, monkeypatch):
    monkeypatch.setattr(transfo_xl_clusters, "CHUNK", 4)
    softmax = softmax_of(build(**options))
    states = jnp.asarray(np.random.default_rng(3).normal(size=(23, 18)), jnp.float32)
    targets = np.concatenate([words(9) % 11, words(7) % 17 + 11, [-100, 28, 52, 10, 11, 27, 30]])

    def by_hand(states, targets):
        scores = softmax("log_prob", states)[jnp.arange(23), jnp.maximum(targets, 0)]
        return -scores * (targets != -100)

    def losses_and_slopes(losses, *traced):
        def weighed(states, *more):
            values = losses(states, *(more or (targets,)))
            return values @ jnp.arange(23.0), values

        return jax.jit(jax.grad(weighed, has_aux=True))(states, *traced)

    expected = losses_and_slopes(by_hand)
    for traced in ((), (targets,)):
        came = losses_and_slopes(lambda *given: softmax("losses", *given), *traced)
        assert error(came[0], expected[0]) < LAYER
        assert error(came[1], expected[1]) < LAYER


def test_embeddings_by_themselves():
    model, ids = fresh("TransfoXLModel"), words(3, 9)
    embedding = flax.AdaptiveEmbedding(53, 12, 18, (11, 28), 2)
    tree = model.get_input_embeddings()
    came = np.asarray(jax.jit(embedding.apply)({"params": tree}, ids))
    for cluster, (first, end) in enumerate(((0, 11), (11, 28), (28, 53))):
        inside = (ids >= first) & (ids < end)
        table = np.asarray(tree["emb_layers"][str(cluster)]["embedding"])
        expected = table[ids[inside] - first] @ np.asarray(tree["emb_projs"][str(cluster)]).T
        assert error(came[inside], expected * 18**0.5) < LAYER
    with pytest.raises(ValueError, match="sample_softmax"):
        flax.AdaptiveEmbedding(53, 12, 18, (11, 28), 2, sample_softmax=1).apply({}, ids)
    model.set_input_embeddings(jax.tree.map(np.zeros_like, tree))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(model.get_input_embeddings()))
    with pytest.raises(XlmfamError, match="missing"):
        model.set_input_embeddings({"emb_layers": tree["emb_layers"]})


@pytest.mark.parametrize(
    ("options", "size", "layer"), [({}, 60, 1), ({}, 49, -1), ({"div_val": 1}, 60, 0)]
)
def test_vocabularies_of_another_size(options, size, layer):
    model = fresh(tie_word_embeddings=False, **options)
    old, ends = model.to_canonical(), model.config.cluster_ends
    model.resize_token_embeddings(size, layer)
    end, more = ends[layer], size - 53
    assert model.config.cluster_ends == [e + more * (e >= end) for e in ends]
    for name, value in model.to_canonical().items():
        if value.shape == old[name].shape:
            assert np.array_equal(value, old[name])
            continue
        # One table for all clusters grows inside, one of its own at its end.
        last = end if options else len(old[name])
        count = min(last, last + more)
        assert len(value) == len(old[name]) + more
        assert np.array_equal(value[:count], old[name][:count])
        assert np.array_equal(value[last + more :], old[name][last:])
    with pytest.raises(XlmfamError, match="no 3"):
        model.resize_token_embeddings(70, 3)
    assert compiled(model)(words(1, 3) % 49).prediction_scores.shape == (1, 3, size)


# ---- training and numbers -------------------------------------------------------------------


def test_dropout_in_training_only():
    model, ids = fresh(dropout=0.5, dropatt=0.5, n_layer=1), words(2, 6)

    @jax.jit
    def noisy(rng):
        return model(ids, train=True, dropout_rng=rng).prediction_scores

    one, quiet = noisy(jax.random.key(0)), compiled(model)(ids).prediction_scores
    assert error(noisy(jax.random.key(1)), one) > 1e-3
    assert error(noisy(jax.random.key(0)), one) == 0
    assert error(quiet, compiled(build(n_layer=1))(ids).prediction_scores) < MODEL
    assert error(one, quiet) > 1e-3
    with pytest.raises(XlmfamError, match="dropout_rng"):
        model(ids, train=True)


def test_a_model_learns_with_layers_recomputed():
    text, rule, results = jnp.asarray(words(2, 12)), optax.adam(2e-2), []
    for recompute in (False, True):
        model = fresh(n_layer=1)
        if recompute:
            model.gradient_checkpointing_enable()

        def loss_of(params, model=model):
            mems, total = None, 0
            for piece in jnp.split(text, 2, 1):
                output = model(piece, mems, labels=piece, params=params, train=True)
                total, mems = total + output.loss, output.mems
            return total

        assert ("remat" in str(jax.make_jaxpr(loss_of)(model.params))) == recompute

        @jax.jit
        def learn(params, loss_of=loss_of):
            def step(carry, _):
                params, state = carry
                loss, slopes = jax.value_and_grad(loss_of)(params)
                updates, state = rule.update(slopes, state)
                return (optax.apply_updates(params, updates), state), loss

            return jax.lax.scan(step, (params, rule.init(params)), length=12)[1]

        results.append(learn(model.params))
    assert results[0][-1] < 0.6 * results[0][0]
    assert error(results[1], results[0]) < 1e-3


def test_mems_pass_gradients_on_and_return_none():
    model, ids = build(n_layer=1), words(1, 4)

    def loss(mems, weight):
        output = model(ids, mems, labels=ids)
        return output.loss + weight * sum(memory.sum() for memory in output.mems)

    slopes = jax.jit(jax.grad(loss))
    (one,), (other,) = (slopes(model.init_mems(1), weight) for weight in (0.0, 1.0))
    assert np.abs(one).sum() > 0
    assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    model, ids = build(n_layer=1), words(2, 9)
    exact = compiled(model)(ids).prediction_scores
    half = flax.TransfoXLLMHeadModel(model.config, dtype=dtype, _do_init=False)
    half.params = (model.to_bf16 if dtype == "bfloat16" else model.to_fp16)(model.params)

    @jax.jit
    def run(ids):
        projected = half(ids, half.init_cache(2))
        return half(ids).prediction_scores, projected, *half.token_losses(ids, ids)

    scores, projected, losses, mems = run(ids)
    assert mems[0].dtype == projected.mems.keys[0].dtype == dtype
    assert error(scores, exact) < 0.05
    assert error(projected.prediction_scores, exact) < 0.05
    assert np.isfinite(losses).all()


# ---- perplexity -----------------------------------------------------------------------------


def test_perplexity_by_hand():
    model, text = build(), words(47, seed=7)
    came = model.evaluate_perplexity(text, 2, 5, memory_length=4, clamp_length=2)
    assert (model.mem_len, model.config.clamp_len) == (6, 3)
    rows = text[:46].reshape(2, 23)
    other = build(mem_len=4, clamp_len=2)
    step = jax.jit(other.token_losses)
    total, mems = 0.0, other.init_mems(2)
    for first in range(0, 22, 5):
        end = min(first + 5, 22)
        losses, mems = step(rows[:, first:end], rows[:, first + 1 : end + 1], mems)
        total += float(losses.sum())
    assert came.tokens == 44
    assert came.loss == pytest.approx(total / 44, rel=1e-5)
    assert came.perplexity == pytest.approx(np.exp(total / 44), rel=1e-4)


STREAMS = ("plain/stream_remainder", "plain/stream_no_memory")


@pytest.mark.parametrize("name", STREAMS)
def test_perplexity_of_the_streams_of_the_reference(name):
    case = next(case for case in golden.cases("transfo-xl", "streams") if case["name"] == name)
    model = golden.load_case(get_backend("flax"), "transfo-xl", case)
    stored = golden.arrays(golden.folder("transfo-xl") / case["arrays"])
    ids = stored[case["input_ids"]].reshape(-1)
    came = model.evaluate_perplexity(ids, 2, case["segment"])
    assert came.loss * came.tokens == pytest.approx(case["total"], rel=MODEL)


@pytest.mark.parametrize(
    ("stream", "sizes", "message"),
    [
        (words(3), {"batch_size": 2}, "3 tokens in 2 rows leave nothing"),
        (words(2, 9), {}, "token ids in one row"),
        (words(9), {"memory_length": -1}, "mem_len must be 0 or more"),
        (words(9) + 50, {}, "outside the vocabulary of 53"),
    ],
)
def test_texts_that_cannot_be_evaluated(stream, sizes, message):
    with pytest.raises(XlmfamError, match=message):
        build().evaluate_perplexity(stream, **sizes)


# ---- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": words(1, 4) + 50}, "outside the vocabulary of 53"),
        ({}, "neither came"),
        ({"input_ids": words(1, 4), "mems": memories(1)[:1]}, "2 layers, got 1"),
        ({"input_ids": words(1, 4), "mems": memories(2)}, "a layer of mems"),
        ({"input_ids": words(1, 4), "head_mask": np.ones(4)}, "head_mask must have shape"),
        ({"input_ids": words(1, 4), "attention_mask": np.ones((1, 3))}, "attention_mask must"),
        ({"input_ids": words(1, 4), "labels": words(1, 3)}, "labels must have shape"),
        ({"input_ids": words(1, 1), "labels": words(1, 1)}, "two tokens in a row"),
        ({"input_ids": words(1, 4), "labels": words(1, 4) + 53}, "labels holds"),
    ],
)
def test_calls_that_cannot_be(inputs, message):
    with pytest.raises(XlmfamError, match=message):
        build()(**inputs)


def test_settings_that_cannot_be():
    model = build("TransfoXLForSequenceClassification")
    with pytest.raises(XlmfamError, match="pad_token_id"):
        model(words(2, 4))
    with pytest.raises(XlmfamError, match="labels"):
        model(words(1, 4), labels=[7])
    with pytest.raises(XlmfamError, match="mem_len must be 0 or more"):
        model.reset_memory_length(-1)


def test_names_of_transformers():
    assert flax.FlaxTransfoXLLMHeadModel is flax.TransfoXLLMHeadModel
    assert flax.FlaxAdaptiveEmbedding is flax.AdaptiveEmbedding
    for name in ("", "ForCausalLM", "ForSequenceClassification"):
        auto = getattr(flax, f"AutoModel{name}")
        made = auto.from_config(flax.TransfoXLConfig(**SIZES), _do_init=False)
        assert type(made).__name__.startswith("TransfoXL")
