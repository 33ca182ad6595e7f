"""What the Flax model does besides giving the right numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from flax_helpers import make_config, randomise

from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.parameters import layout_shape, spell
from xlmfam.flax import KeyValueCache, XGLMForCausalLM, XGLMModel


def close(a, b, tolerance=2e-5):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(
    "kwargs", [{}, {"tie_word_embeddings": False, "add_cross_attention": True}]
)
@pytest.mark.parametrize("model_class", [XGLMModel, XGLMForCausalLM])
def test_the_tree_is_the_tables(kwargs, model_class):
    config = make_config(**kwargs)
    model = model_class(config, _do_init=False)
    encoder = {}
    if config.add_cross_attention:
        encoder = {"encoder_hidden_states": jnp.zeros((1, 2, 24))}
    ids = jnp.zeros((1, 1), int)
    made = jax.eval_shape(lambda: model.module.init(jax.random.key(0), ids, **encoder))
    found = {"/".join(path): leaf.shape for path, leaf in flatten_dict(made["params"]).items()}
    rows = [row for row in model.expected_parameters().values() if row.tied_to is None]
    assert found == {spell(row, "flax"): layout_shape(row, "flax") for row in rows}
    assert model.required_params == set(flatten_dict(model.params_shape_tree))
    assert model.num_parameters() == sum(np.prod(shape) for shape in found.values())


def test_initial_values(config):
    model = XGLMForCausalLM(config, seed=4)
    values = model.to_canonical()
    embedding = values["model.embed_tokens.weight"]
    assert not embedding[config.pad_token_id].any()
    assert embedding.std() == pytest.approx(config.init_std, rel=0.1)
    again = XGLMForCausalLM(config, seed=4).to_canonical()
    other = XGLMForCausalLM(config, seed=5).to_canonical()
    assert all((again[name] == values[name]).all() for name in values)
    assert (other["model.embed_tokens.weight"] != embedding).any()
    kept = model.init_weights(jax.random.key(9), params={"model": model.params["model"]})
    assert (
        kept["model"]["embed_tokens"]["embedding"]
        is model.params["model"]["embed_tokens"]["embedding"]
    )


def test_without_init_params_are_handed_over(model, config, ids):
    bare = XGLMForCausalLM(config, _do_init=False)
    with pytest.raises(XlmfamError, match="_do_init=False"):
        bare(ids)
    close(bare(ids, params=model.params).logits, model(ids).logits, 0)
    other = jax.tree.map(lambda x: x * 1.5, model.params)
    assert np.abs(model(ids, params=other).logits - model(ids).logits).max() > 0.1
    with pytest.raises(XlmfamError, match="missing"):
        bare.params = {"model": {}}
    bare.params = model.params
    close(bare(ids).logits, model(ids).logits, 0)


def test_jit_grad_and_vmap(model, ids):
    eager = model(ids, labels=ids)
    compiled = jax.jit(lambda p, i: model(i, params=p, labels=i))(model.params, ids)
    close(compiled.loss, eager.loss)
    close(compiled.logits, eager.logits)
    assert compiled.keys() == eager.keys()
    each = jax.jit(jax.vmap(lambda i: model(i[None], labels=i[None]), in_axes=0))(ids)
    close(each.logits[:, 0], eager.logits)
    close(each.loss.mean(), eager.loss)

    def loss(params):
        return model(ids, labels=ids, params=params).loss

    gradients = jax.jit(jax.grad(loss))(model.params)
    names = model.to_canonical(gradients)
    assert names.keys() == model.to_canonical().keys()
    # Against a finite difference in a random direction.
    rng = np.random.default_rng(0)
    way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), model.params)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, w: (g * w).sum(), gradients, way)))
    step = 1e-3
    near = [jax.tree.map(lambda p, w, s=s: p + s * w, model.params, way) for s in (step, -step)]
    measured = (jax.jit(loss)(near[0]) - jax.jit(loss)(near[1])) / (2 * step)
    assert float(measured) == pytest.approx(float(slope), rel=2e-2, abs=1e-2)


def test_outputs_are_pytrees(model, ids, run_jitted):
    output = run_jitted(model, ids, flags={"output_attentions": True, "use_cache": False})
    doubled = jax.tree.map(lambda x: x * 2, output)
    assert type(doubled) is type(output)
    assert list(doubled.keys()) == ["logits", "attentions"]
    assert jax.tree.map(lambda x: x.shape, output, is_leaf=lambda x: x is None)["logits"] == (
        3,
        7,
        61,
    )
    assert ".logits" in jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(output)[0][0])
    close(output[0], output.logits, 0)
    as_tuple = model(ids, return_dict=False, use_cache=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == 1


def test_plain_past(model, ids):
    whole = model(ids, use_cache=True)
    assert whole.past_key_values[0][0].shape == (3, 4, 7, 6)
    first = model(ids[:, :4], use_cache=True)
    second = model(ids[:, 4:], past_key_values=first.past_key_values, use_cache=True)
    close(second.logits, whole.logits[:, 4:])
    close(second.past_key_values[1][1], whole.past_key_values[1][1])
    assert model(ids, use_cache=False).past_key_values is None


def test_preallocated_cache(model, ids):
    mask = np.ones((3, 7), int)
    mask[0, :2] = 0
    whole = model(ids, mask).logits
    step = jax.jit(lambda p, i, m, c: model(i, m, params=p, past_key_values=c), donate_argnums=3)
    cache = model.init_cache(3, 9)
    wide = np.pad(mask, ((0, 0), (0, 2)), constant_values=1)  # as the reference documents it
    found = []
    for at in range(7):
        output = step(model.params, ids[:, at : at + 1], wide, cache)
        cache = output.past_key_values
        found.append(output.logits)
    assert step._cache_size() == 1  # the length is an array
    assert isinstance(cache, KeyValueCache)
    assert int(cache.length) == 7
    close(np.concatenate(found, 1)[1:], whole[1:])
    close(np.concatenate(found, 1)[0, 2:], whole[0, 2:])
    # A mask as long as the past and the new tokens, several tokens at once.
    cache = model(ids[:, :4], mask[:, :4], past_key_values=model.init_cache(3, 8)).past_key_values
    rest = model(ids[:, 4:], mask, past_key_values=cache)
    close(rest.logits, whole[:, 4:])
    with pytest.raises(XlmfamError, match="holds 8 tokens"):
        model(ids[:, :2], past_key_values=rest.past_key_values)
    with pytest.raises(XlmfamError, match="reaches 9"):
        model(ids[:, :1], wide, past_key_values=rest.past_key_values)


def test_cross_attention_keeps_the_encoders_keys(cross_model, ids):
    states = np.random.default_rng(5).normal(size=(3, 5, 24)).astype(np.float32)
    seen = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    encoder = {"encoder_hidden_states": states, "encoder_attention_mask": seen}
    whole = cross_model(ids, **encoder, output_attentions=True)
    assert whole.cross_attentions[1].shape == (3, 4, 7, 5)
    assert len(whole.past_key_values[0]) == 4
    for past in (None, cross_model.init_cache(3, 8)):
        first = cross_model(ids[:, :6], past_key_values=past, **encoder)
        # The keys were kept: other states of the same shape change nothing.
        other = {**encoder, "encoder_hidden_states": states * 0}
        last = cross_model(ids[:, 6:], past_key_values=first.past_key_values, **other)
        close(last.logits, whole.logits[:, 6:])


def test_left_padding_is_each_row_alone(model, ids, run_jitted):
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    batch = run_jitted(model, ids, mask).logits
    close(batch[0, 3:], run_jitted(model, ids[:1, 3:]).logits[0])
    masked = run_jitted(model, ids, np.zeros_like(ids), flags={"output_attentions": True})
    assert np.isfinite(masked.logits).all()
    close(masked.attentions[0][0, 0, 2], np.full(7, 1 / 7))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(model, config, ids, dtype):
    small = XGLMForCausalLM(config, dtype=dtype, _do_init=False)
    convert = {"bfloat16": model.to_bf16, "float16": model.to_fp16}[dtype]
    params = convert(model.params)
    assert all(x.dtype == dtype for x in jax.tree.leaves(params))
    output = small(ids, np.zeros_like(ids), params=params)
    assert output.logits.dtype == dtype
    assert np.isfinite(np.asarray(output.logits, np.float32)).all()
    close(small(ids, params=params).logits, model(ids).logits, 0.1)
    assert small.init_cache(1, 4).keys[0].dtype == dtype
    back = model.to_fp32(params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(back))


def test_casting_only_what_a_mask_marks(model):
    params = model.to_bf16(model.params, mask=model.decay_mask())
    dtypes = {"/".join(p): str(x.dtype) for p, x in flatten_dict(params).items()}
    assert dtypes["model/layers/0/fc1/kernel"] == "bfloat16"
    assert dtypes["model/layers/0/fc1/bias"] == "float32"
    assert dtypes["model/layer_norm/scale"] == "float32"


def test_dropout_follows_the_key(ids):
    rates = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}
    model = randomise(XGLMForCausalLM(make_config(**rates)))
    call = jax.jit(lambda k: model(ids, train=True, dropout_rng=k, use_cache=False).logits)
    first, again, other = (call(jax.random.key(seed)) for seed in (0, 0, 1))
    close(first, again, 0)
    assert np.abs(first - other).max() > 0.01
    with pytest.raises(XlmfamError, match="dropout_rng"):
        model(ids, train=True)


def test_layerdrop_skips_whole_layers(ids):
    model = randomise(
        XGLMForCausalLM(make_config(dropout=0.0, attention_dropout=0.0, layerdrop=0.5))
    )
    call = jax.jit(
        lambda k: model(ids, train=True, dropout_rng=k, output_hidden_states=True).hidden_states
    )
    evaluated = model(ids, output_hidden_states=True).hidden_states
    seen = set()
    for seed in range(8):
        states = call(jax.random.key(seed))
        skipped = bool((states[1] == states[0]).all())
        seen.add(skipped)
        if not skipped:
            close(states[1], evaluated[1])
    assert seen == {True, False}


def test_gradient_checkpointing_changes_no_gradient(ids):
    model = randomise(XGLMForCausalLM(make_config(dropout=0.0, attention_dropout=0.0)))

    def gradient(params):
        return model(ids, labels=ids, params=params, train=True, use_cache=False).loss

    plain = jax.jit(jax.grad(gradient))(model.params)
    model.gradient_checkpointing_enable()
    assert "remat" in str(jax.make_jaxpr(lambda p: gradient(p))(model.params))
    jax.tree.map(close, jax.jit(jax.grad(lambda p: gradient(p)))(model.params), plain)
    model.gradient_checkpointing_disable()
    assert "remat" not in str(jax.make_jaxpr(lambda p: gradient(p))(model.params))


def test_weight_decay_mask_serves_optax(model):
    optax = pytest.importorskip("optax")
    zeros = jax.tree.map(jnp.zeros_like, model.params)
    optimiser = optax.adamw(0.1, weight_decay=0.5, mask=model.decay_mask)
    updates, _ = optimiser.update(zeros, optimiser.init(model.params), model.params)
    moved = {name for name, x in model.to_canonical(updates).items() if np.abs(x).max() > 0}
    decaying = set(model.decay_parameters())
    assert moved == decaying - {"lm_head.weight"}  # tied, so listed once


@pytest.mark.parametrize("tied", [True, False])
def test_resize(tied, ids):
    model = randomise(XGLMForCausalLM(make_config(tie_word_embeddings=tied)))
    before = model(ids).logits
    model.resize_token_embeddings(70)
    assert model.config.vocab_size == 70
    assert model.get_input_embeddings().shape == (70, 24)
    after = model(ids).logits
    close(after[..., :61], before)
    assert after.shape[-1] == 70
    model.resize_token_embeddings(pad_to_multiple_of=32)
    assert model.config.vocab_size == 96
    params = model.resize_token_embeddings(61, params=model.params)
    close(model(ids, params=params).logits, before)
    with pytest.raises(XlmfamError, match="positive"):
        model.resize_token_embeddings(-1)
    with pytest.raises(XlmfamError, match="pad_token_id"):
        model.resize_token_embeddings(1)  # would leave the padding token outside
    assert model.config.vocab_size == 61


def test_embedding_passed_in(config):
    table = np.random.default_rng(0).normal(size=(61, 24)).astype(np.float32)
    model = XGLMModel(config, embed_tokens=table)
    close(model.get_input_embeddings(), table, 0)
    with pytest.raises(XlmfamError, match="params do not fit"):
        XGLMModel(config, embed_tokens=table[:5])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "neither"),
        ({"input_ids": [[1, 61]]}, "input_ids holds 61"),
        ({"input_ids": [[-1, 3]]}, "input_ids holds -1"),
        ({"input_ids": [[0.5]]}, "integers"),
        ({"input_ids": [1, 2]}, r"\(batch, sequence\)"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1, 1]]}, "attention_mask"),
        ({"input_ids": [[1, 2]], "position_ids": [[1, 1, 1]]}, "position_ids"),
        ({"input_ids": [[1, 2]], "head_mask": [1.0, 1.0]}, "head_mask"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "labels"),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]], "last_logits_only": True}, "all positions"),
        ({"input_ids": [[1, 2]], "inputs_embeds": np.zeros((1, 2, 24))}, "both"),
        ({"inputs_embeds": np.zeros((1, 2, 23))}, "inputs_embeds"),
        (
            {"input_ids": [[1, 2]], "encoder_hidden_states": np.zeros((1, 2, 24))},
            "add_cross_attention=True",
        ),
    ],
)
def test_errors_before_any_compute(model, kwargs, message):
    with pytest.raises(XlmfamError, match=message):
        model(**kwargs)


def test_more_errors(model, cross_model, ids):
    with pytest.raises(TypeError, match="no_such_argument"):
        model(ids, no_such_argument=1)
    with pytest.raises(XlmfamError, match="encoder_hidden_states"):
        cross_model(ids, encoder_hidden_states=np.zeros((2, 5, 24)))
    with pytest.raises(ConfigError, match="XGLMConfig"):
        XGLMForCausalLM({"vocab_size": 3})
    with pytest.raises(ConfigError, match="dtype"):
        XGLMForCausalLM(model.config, dtype="int32", _do_init=False)
    # Ids that are traced cannot be looked at, and are not.
    jax.jit(lambda i: model(i, use_cache=False).logits)(jnp.asarray(ids))
