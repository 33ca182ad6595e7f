"""X-MOD in Flax: what is learned and frozen, adding and removing languages, generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from flax_helpers import randomise
from test_flax_xmod import SIZES as ONE_LAYER
from test_flax_xmod import close, far

from xlmfam import flax
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.flax import generation

SIZES = {**ONE_LAYER, "num_hidden_layers": 2}
LANGUAGES = SIZES["languages"]


def build(class_name="XmodForMaskedLM", **options):
    return randomise(getattr(flax, class_name)(flax.XmodConfig(**{**SIZES, **options})))


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(3).integers(3, 61, (3, 6))


# ---- what is learned ------------------------------------------------------------------------


def moved(model, labels, ids):
    """Return the canonical names of what one step of an optimiser changes."""
    optax = pytest.importorskip("optax")
    optimiser = optax.multi_transform(
        {"trainable": optax.adamw(0.1), "frozen": optax.set_to_zero()}, labels
    )
    gradients = jax.jit(
        jax.grad(lambda p: model(ids, ["de", "en", "fr"], labels=ids[:, 0] % 3, params=p).loss)
    )(model.params)
    updates, _ = optimiser.update(gradients, optimiser.init(model.params), model.params)
    return {name for name, x in model.to_canonical(updates).items() if np.abs(x).max() > 0}


def test_freezing_embeddings_and_adapters(ids):
    model = build("XmodForSequenceClassification", num_labels=3, adapter_layer_norm=True)
    found = moved(model, model.freeze_embeddings_and_language_adapters(), ids)
    frozen = {
        name
        for name in model.to_canonical()
        if "embeddings" in name or "adapter_modules" in name or "adapter_layer_norm" in name
    }
    # 5 of embeddings; in both layers 4 of each of 4 languages, and a norm.
    assert len(frozen) == 5 + 2 * (4 * 4 + 2)
    assert found == set(model.to_canonical()) - frozen


def test_learning_one_language_only(ids):
    model = build("XmodForSequenceClassification", num_labels=3)
    found = moved(model, model.train_only_language("en"), ids)
    assert found == {
        name for name in model.to_canonical() if "embeddings" in name or ".en." in name
    }
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows de, en, fr"):
        model.train_only_language("xx")


def test_labels_of_every_class_fit_its_parameters():
    for name in ("XmodModel", "XmodForCausalLM", "XmodForQuestionAnswering"):
        model = getattr(flax, name)(flax.XmodConfig(**SIZES), _do_init=False)
        labels = model.freeze_embeddings_and_language_adapters()
        assert jax.tree.structure(labels) == jax.tree.structure(model.params_shape_tree)
        assert set(jax.tree.leaves(labels)) == {"trainable", "frozen"}


# ---- languages come and go ------------------------------------------------------------------


def test_adding_a_language_like_another(ids):
    model = build()
    before = flatten_dict(model.params)
    old = model(ids, "fr").logits
    params = model.add_language("nl", init_from="fr")
    assert params is model.params
    assert model.config.languages == ["de", "en", "fr", "sw", "nl"]
    close(model(ids, "nl").logits, old, 0)
    close(model(ids, "fr").logits, old, 0)
    close(model(ids, [2, 4, 2]).logits, old)
    after = flatten_dict(model.params)
    assert after.keys() - before.keys() == {
        tuple("nl" if part == "fr" else part for part in path) for path in before if "fr" in path
    }
    assert all(after[path] is before[path] for path in before)
    # Changing one does not change the other.
    labels = model.train_only_language("nl")
    learned = {path for path, label in flatten_dict(labels).items() if label == "trainable"}
    assert not any("fr" in path for path in learned)
    assert sum("nl" in path for path in learned) == 8


def test_adding_the_mean_and_the_random():
    model = build()
    model.add_language("mean", "mean")
    model.add_language("new")
    flat = flatten_dict(model.params)
    paths = [path for path in flat if "mean" in path]

    def of(path, code):
        return flat[tuple(code if part == "mean" else part for part in path)]

    for path in paths:
        every = np.stack([of(path, code) for code in ("de", "en", "fr", "sw")])
        close(flat[path], every.mean(0))
        value = np.asarray(of(path, "new"))
        if path[-1] == "bias":
            assert not value.any()
        else:
            assert value.std() == pytest.approx(0.02, rel=0.25)
    kernels = [np.asarray(of(p, "new")) for p in paths if p[-2:] == ("dense1", "kernel")]
    far(*kernels)


def test_a_new_model_has_no_adapter_twice():
    model = flax.XmodForMaskedLM(flax.XmodConfig(**SIZES))
    model.add_language("nl")
    model.add_language("fi")
    flat = flatten_dict(model.params)
    sums = [
        float(jnp.abs(x).sum()) for path, x in flat.items() if path[-2:] == ("dense1", "kernel")
    ]
    assert len(sums) == len(set(sums)) == 12


def test_adding_without_params_of_its_own(ids):
    model = build()
    bare = flax.XmodForMaskedLM(model.config, _do_init=False)
    params = model.to_bf16(model.params)
    with pytest.raises(XlmfamError, match="_do_init=False"):
        bare.add_language("nl")
    more = bare.add_language("nl", "mean", params=params)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(more))
    assert bare(ids, "nl", params=more).logits.shape == (3, 6, 61)
    fewer = bare.remove_languages("nl", params=more)
    jax.tree.map(lambda a, b: close(a, b, 0), fewer, params)


@pytest.mark.parametrize(
    ("code", "init_from", "message"),
    [
        ("en", "random", "there is a language 'en' already"),
        ("nl", "xx", "de, en, fr, sw; got 'xx'"),
        ("n.l", "random", "without '.'"),
    ],
)
def test_languages_that_cannot_be_added(code, init_from, message):
    model = build()
    before = model.params
    with pytest.raises(XlmfamError, match=message):
        model.add_language(code, init_from)
    assert model.config.languages == LANGUAGES
    assert model.params is before


def test_removing_languages(tmp_path, ids):
    model = build(default_language="en")
    old = model(ids, "sw").logits
    model.remove_languages(["de", "fr"])
    assert model.config.languages == ["en", "sw"]
    assert model.config.default_language == "en"
    close(model(ids, 1).logits, old, 0)
    assert not any({"de", "fr"} & set(path) for path in flatten_dict(model.params))
    model.save_pretrained(tmp_path)
    again = flax.XmodForMaskedLM.from_pretrained(tmp_path)
    close(again(ids, "sw").logits, old, 0)
    model.remove_languages("en")
    assert model.config.default_language is None
    close(model(ids, "sw").logits, old, 0)
    with pytest.raises(XlmfamError, match="one language at least must stay"):
        model.remove_languages("sw")
    with pytest.raises(XlmfamError, match="unknown language 'de'; this model knows sw"):
        model.remove_languages(["de"])


# ---- generation -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder():
    # Values large enough that languages lead to other tokens.
    return randomise(
        flax.XmodForCausalLM(flax.XmodConfig(**ONE_LAYER, is_decoder=True, eos_token_id=None)), 4
    )


OPTIONS = {"max_new_tokens": 5, "eos_token_id": None}


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_honours_the_languages(decoder, ids, beams):
    options = {**OPTIONS, "num_beams": beams}
    langs = ["sw", "en", "de"]
    alone = [
        decoder.generate(ids[i : i + 1], lang_ids=lang, **options)[0]
        for i, lang in enumerate(langs)
    ]
    found = decoder.generate(ids, lang_ids=langs, **options)
    assert found.tolist() == [row.tolist() for row in alone]
    assert found.tolist() != decoder.generate(ids, lang_ids="sw", **options).tolist()
    tokens = [[lang] * 6 for lang in langs]
    assert decoder.generate(ids, lang_ids=tokens, **options).tolist() == found.tolist()
    # Left padding, which the adapters go over too, changes nothing.
    padded = np.pad(ids, ((0, 0), (2, 0)), constant_values=1)
    mask = (np.arange(8) >= 2).astype(int)[None].repeat(3, 0)
    again = decoder.generate(padded, mask, lang_ids=langs, **options)
    assert again[:, 2:].tolist() == found.tolist()


def test_generation_with_languages_that_are_traced(decoder, ids):
    langs = np.array([3, 1, 0])
    expected = decoder.generate(ids, lang_ids=langs, **OPTIONS)
    call = jax.jit(lambda i, langs: decoder.generate(i, lang_ids=langs, **OPTIONS))
    assert call(ids, langs).tolist() == expected.tolist()
    without = decoder.generate(ids, lang_ids=langs, use_cache=False, **OPTIONS)
    assert without.tolist() == expected.tolist()


def test_generation_step_by_step(decoder, ids):
    """New tokens have the language of the last one of their prompt."""
    tokens = np.array([[3, 3, 0, 0, 1, 2], [0] * 6, [1, 2, 1, 2, 1, 3]])
    text, langs = ids, tokens
    call = jax.jit(lambda i, langs: decoder(i, langs, last_logits_only=True).logits[:, 0])
    for _ in range(3):
        text = np.concatenate([text, np.asarray(call(text, langs)).argmax(-1)[:, None]], 1)
        langs = np.concatenate([langs, tokens[:, -1:]], 1)
    options = {**OPTIONS, "max_new_tokens": 3}
    assert decoder.generate(ids, lang_ids=tokens, **options).tolist() == text.tolist()


def test_generation_without_looking_back_only(ids):
    model = build("XmodForCausalLM", num_hidden_layers=1, default_language="en")
    text = ids
    call = jax.jit(lambda i: model(i, last_logits_only=True).logits[:, 0])
    scores = []
    for _ in range(2):
        scores.append(call(text))
        best = np.asarray(scores[-1]).argmax(-1)
        text = np.concatenate([text, best[:, None]], 1)
    options = {"output_scores": True, "return_dict_in_generate": True}
    found = model.generate(ids, max_new_tokens=2, eos_token_id=None, **options)
    assert found.sequences.tolist() == text.tolist()
    for came, expected in zip(found.scores, scores, strict=True):
        close(came, expected)


def test_the_default_language_may_change_between_calls(decoder, ids):
    decoder.generate(ids, lang_ids="fr", **OPTIONS)
    compiled = generation.prefill._cache_size(), generation.run._cache_size()
    by_default = []
    for lang in ("de", "sw"):
        decoder.set_default_language(lang)
        by_default.append(decoder.generate(ids, **OPTIONS).tolist())
        assert by_default[-1] == decoder.generate(ids, lang_ids=lang, **OPTIONS).tolist()
    # What is compiled serves every language.
    assert compiled == (generation.prefill._cache_size(), generation.run._cache_size())
    decoder.config.default_language = None
    assert by_default[0] != by_default[1]
    with pytest.raises(XlmfamError, match="give lang_ids"):
        decoder.generate(ids, **OPTIONS)


def test_generation_beyond_the_positions(decoder, ids):
    assert decoder.generate(ids, lang_ids="en", max_length=36, eos_token_id=None).shape == (3, 36)
    with pytest.raises(ConfigError, match="max_length 37 needs 36 positions, the model has 35"):
        decoder.generate(ids, lang_ids="en", max_length=37)
    with pytest.raises(XlmfamError, match="lang_ids holds 9"):
        decoder.generate(ids, lang_ids=[0, 9, 1], **OPTIONS)
