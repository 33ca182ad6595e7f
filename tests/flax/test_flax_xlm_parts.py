"""XLM in Flax: pruning, resizing, generating, translating, filling in, heads, wrong inputs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_helpers import close, far, make_xlm

from xlmfam import XLMTokenizer
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.flax import XLMWithLMHeadModel

FREE = {"eos_token_id": None, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def masked():
    return make_xlm(n_layers=1)


@pytest.fixture(scope="module")
def causal():
    return make_xlm(causal=True, n_layers=1)


@pytest.fixture
def ids():
    return np.random.default_rng(3).integers(6, 53, (2, 7))


# ---- parameters -----------------------------------------------------------------------------


def test_pruned_heads_are_heads_that_are_masked(ids, tmp_path, run_jitted):
    model = make_xlm()
    head_mask = np.array([[1.0, 0, 1, 1], [0, 1, 1, 0]])
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    expected = run_jitted(model, ids, mask, head_mask=head_mask).logits
    bare = XLMWithLMHeadModel(type(model.config)(**model.config.to_dict()), _do_init=False)
    small = bare.prune_heads({0: [1], 1: [0, 3]}, params=model.params)
    model.prune_heads({0: [1]})
    result = model.prune_heads({1: [3, 0], 0: [1]})
    assert result is model.params
    attention = model.params["transformer"]["attentions"]["1"]
    assert attention["q_lin"]["kernel"].shape == (24, 12)
    assert attention["out_lin"]["kernel"].shape == (12, 24)
    jax.tree.map(lambda a, b: close(a, b, 0), small, model.params)
    close(run_jitted(model, ids, mask).logits, expected)
    close(jax.jit(lambda p: bare(ids, mask, params=p).logits)(small), expected)
    # A mask for all heads that there were: of those that are left it takes its own.
    close(run_jitted(model, ids, mask, head_mask=head_mask).logits, expected)
    assert model.config.pruned_heads == {0: [1], 1: [0, 3]}
    model.save_pretrained(tmp_path)
    again = XLMWithLMHeadModel.from_pretrained(tmp_path)
    close(run_jitted(again, ids, mask).logits, expected)
    with pytest.raises(ConfigError, match="leaves layer 0 no head"):
        model.prune_heads({0: [0, 2, 3]})
    assert model.config.pruned_heads == {0: [1], 1: [0, 3]}
    with pytest.raises(XlmfamError, match="needs a dict"):
        model.init_cache(1, 5)
    with pytest.raises(XlmfamError, match="cannot be pruned"):
        make_xlm("XLMEncoderDecoder").prune_heads({0: [1]})


def test_a_pruned_causal_model_generates_with_a_cache(ids):
    causal = make_xlm(causal=True)
    masking = np.array([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    expected = causal.generate(ids, langs="de", head_mask=masking, num_beams=2, **FREE)
    pruned = make_xlm(causal=True)  # layers with different numbers of heads
    pruned.prune_heads({0: [1]})
    assert pruned.generates_with_cache
    np.testing.assert_array_equal(pruned.generate(ids, langs="de", num_beams=2, **FREE), expected)


@pytest.mark.parametrize("class_name", ["XLMWithLMHeadModel", "XLMEncoderDecoder"])
def test_resizing_the_vocabulary(ids, class_name, run_jitted):
    model = make_xlm(class_name, n_layers=1)
    inputs = {} if class_name == "XLMWithLMHeadModel" else {"decoder_input_ids": ids}
    before = run_jitted(model, ids, **inputs).logits
    model.resize_token_embeddings(61)
    after = run_jitted(model, ids, **inputs).logits
    close(after[..., :53], before)
    assert after.shape == (2, 7, 61)
    part = "encoder" if "encoder" in model.params else "transformer"
    embedding = model.get_input_embeddings()
    assert embedding.shape == (61, 24)
    assert embedding is model.params[part]["embeddings"]["embedding"]


# ---- generation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_causal", "options"),
    [
        (True, {"num_beams": 2, "num_return_sequences": 2}),
        (True, {"do_sample": True, "top_k": 9, "seed": 3, "num_return_sequences": 2}),
        (True, {"use_cache": False}),
        (False, {}),
    ],
    ids=["beams", "samples", "no cache", "masked"],
)
def test_inside_jit_as_outside(masked, causal, ids, is_causal, options):
    """Inside there are no buckets, so this also shows that buckets do not show."""
    model = causal if is_causal else masked
    options = {**options, "max_new_tokens": 4, "eos_token_id": [25, 4]}
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    outside = np.asarray(model.generate(ids, mask, langs=["fr", "de"], **options))
    call = jax.jit(lambda p, i, m, langs: model.generate(i, m, langs=langs, params=p, **options))
    inside = np.asarray(call(model.params, ids, mask, np.array([2, 0])))
    assert inside.shape[1] == 11
    np.testing.assert_array_equal(inside[:, : outside.shape[1]], outside)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "masked"])
def test_left_padding_is_each_prompt_alone(masked, causal, ids, is_causal):
    model = causal if is_causal else masked
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    langs = np.arange(14).reshape(2, 7) % 3
    prompts = np.where(mask, ids, 2)
    batch = np.asarray(model.generate(prompts, mask, langs=langs, **FREE))
    for row, pad in enumerate((3, 0)):
        new = slice(row, row + 1)
        alone = model.generate(ids[new, pad:], langs=langs[new, pad:], **FREE)
        np.testing.assert_array_equal(batch[row, pad:], alone[0])
    np.testing.assert_array_equal(model.generate(prompts, langs=langs, **FREE), batch)


def next_logits(model, ids, langs):
    """The scores of each row's next token, by calling the model."""
    if not model.config.is_causal:
        ids = jnp.pad(ids, ((0, 0), (0, 1)), constant_values=model.config.mask_token_id)
        langs = np.pad(langs, ((0, 0), (0, 1)), mode="edge")
    return model(ids, np.ones(ids.shape), langs).logits[:, -1]


@pytest.mark.parametrize("options", [{"causal": True}, {"mask_token_id": 5}])
def test_scores_are_those_of_the_model(options, ids):
    model = make_xlm(n_layers=1, **options)
    langs = np.arange(14).reshape(2, 7) % 3
    langs[:, -1] = 1  # new tokens have the language of the last one
    more = {"return_dict_in_generate": True, "output_scores": True, **FREE}
    found = model.generate(ids, langs=langs, **more)
    for column in (7, 10):
        so_far = np.pad(langs, ((0, 0), (0, column - 7)), mode="edge")
        close(found.scores[column - 7], next_logits(model, found.sequences[:, :column], so_far))
    default = model.generate(ids, **more)
    close(default.scores, model.generate(ids, langs="de", **more).scores)
    assert far(default.scores, found.scores)


def test_up_to_the_last_position(masked, causal):
    """The buffers are longer than there are positions; what is beyond must not be seen."""
    ids = np.random.default_rng(4).integers(6, 53, (2, 33))
    for model, most in ((causal, 38), (masked, 37)):
        for use_cache in (True, False)[: 1 + model.config.causal]:
            options = {"max_length": most, "eos_token_id": None, "use_cache": use_cache}
            found = np.asarray(model.generate(ids, **options))
            zeros = np.zeros((2, most - 1), int)
            logits = jax.jit(lambda i, m=model, z=zeros: next_logits(m, i, z))(found[:, :-1])
            np.testing.assert_array_equal(found[:, -1], logits.argmax(-1))
        with pytest.raises(ConfigError, match="needs 38 positions, max_position_embeddings is 37"):
            model.generate(ids, max_length=most + 1)


def test_wrong_arguments_of_generate(causal, ids):
    with pytest.raises(XlmfamError, match="unknown language 'xx'"):
        causal.generate(ids, langs="xx")
    with pytest.raises(XlmfamError, match="head_mask"):
        causal.generate(ids, head_mask=[1.0, 1.0])
    with pytest.raises(ConfigError, match="encoder_hidden_states"):
        causal.generate(ids, encoder_hidden_states=np.zeros((2, 3, 24)))


# ---- heads ----------------------------------------------------------------------------------


def test_the_kind_of_a_classification_follows_the_labels(ids, run_jitted):
    model = make_xlm("XLMForSequenceClassification", n_layers=1, num_labels=3)
    classes, several = np.array([2, 0]), np.array([[1.0, 0, 1], [0, 0, 1]])
    output = run_jitted(model, ids, labels=classes)
    logits = output.logits
    expected = -jax.nn.log_softmax(logits)[jnp.arange(2), classes].mean()
    close(output.loss, expected)
    chances = jax.nn.sigmoid(logits)
    expected = -jnp.where(several == 1, jnp.log(chances), jnp.log(1 - chances)).mean()
    close(run_jitted(model, ids, labels=several).loss, expected)
    # The reference would have kept the first kind in the config.
    assert model.config.problem_type is None
    model.config.problem_type = "regression"
    close(run_jitted(model, ids, labels=several).loss, ((logits - several) ** 2).mean())
    model.config.problem_type = None
    with pytest.raises(XlmfamError, match="labels must have shape"):
        model(ids, labels=np.zeros((2, 4)))
    with pytest.raises(XlmfamError, match=r"labels holds 3, outside \[0, 2\]"):
        model(ids, labels=[0, 3])


def test_choices_take_a_language_each(ids, run_jitted):
    model = make_xlm("XLMForMultipleChoice", n_layers=1)
    choices = np.stack([ids, ids[:, ::-1]], 1)
    by_choice = np.array([[0, 2], [1, 1]])
    expected = run_jitted(model, choices, langs=by_choice[..., None].repeat(7, -1)).logits
    close(run_jitted(model, choices, langs=by_choice).logits, expected)
    by_sample = run_jitted(model, choices, flags={"langs": ["de", "en"]}).logits
    close(by_sample, run_jitted(model, choices, langs=np.array([[0, 0], [1, 1]])).logits)
    assert far(by_sample, expected)
    lengths = np.array([[3, 7], [7, 7]])  # not used, as in the reference
    close(run_jitted(model, choices, langs=by_choice, lengths=lengths).logits, expected)
    with pytest.raises(XlmfamError, match=r"\(batch, choices, sequence\)"):
        model(ids)


def test_question_answering_refuses_what_cannot_be(ids):
    with pytest.raises(XlmfamError, match="num_labels=2"):
        make_xlm("XLMForQuestionAnsweringSimple", num_labels=3)
    model = make_xlm("XLMForQuestionAnswering")
    with pytest.raises(XlmfamError, match=r"end_positions holds 7, outside \[0, 6\]"):
        model(ids, start_positions=np.array([0, 1]), end_positions=np.array([6, 7]))
    with pytest.raises(XlmfamError, match="must not exceed the 4 positions"):
        model(ids[:, :4])
    with pytest.raises(XlmfamError, match="p_mask must have shape"):
        model(ids, p_mask=np.zeros((2, 3)))


# ---- wrong inputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither"),
        ({"input_ids": [[1, 53]]}, "input_ids holds 53"),
        ({"input_ids": [[0.5]]}, "integers"),
        ({"input_ids": [[6] * 38]}, "the text has 38 tokens, max_position_embeddings is 37"),
        ({"input_ids": [[6, 7]], "attention_mask": [[1, 1, 1]]}, "attention_mask"),
        ({"input_ids": [[6, 7]], "lengths": [3]}, r"lengths holds 3, outside \[0, 2\]"),
        ({"input_ids": [[6, 7]], "position_ids": [[0, 37]]}, r"position_ids holds 37, outside"),
        ({"input_ids": [[6, 7]], "token_type_ids": [[0, 60]]}, "token_type_ids holds 60"),
        ({"input_ids": [[6, 7]], "head_mask": [1.0, 1.0]}, "head_mask"),
        ({"input_ids": [[6, 7]], "labels": [[1]]}, "labels must have shape"),
        ({"input_ids": [[6, 7]], "labels": [[1, 53]]}, "labels holds 53"),
        ({"input_ids": [[6, 7]], "src_enc": np.zeros((1, 3, 24))}, "src_enc needs a decoder"),
        ({"inputs_embeds": np.zeros((1, 3, 7))}, "inputs_embeds must be"),
    ],
)
def test_errors_before_any_compute(masked, arguments, message):
    with pytest.raises(XlmfamError, match=message):
        masked(**arguments)


def test_a_causal_text_beyond_the_positions(causal):
    ids = np.full((1, 40), 9)
    with pytest.raises(XlmfamError, match="the text has 40 tokens"):
        causal(ids)
    with pytest.raises(XlmfamError, match=r"position_ids holds 37, outside \[0, 36\]"):
        causal(ids, (np.arange(40) > 1).astype(int)[None])
    # Padding takes no position.
    assert causal(ids, (np.arange(40) > 2).astype(int)[None]).logits.shape == (1, 40, 53)


# ---- text in, text out ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    folder = Path(__file__).parents[1] / "data" / "tokenizers" / "xlm"
    return XLMTokenizer(folder / "vocab.json", folder / "merges.txt")


def test_fill_mask(tokenizer):
    model = make_xlm(n_layers=1, vocab_size=len(tokenizer))
    hidden = tokenizer.mask_token
    one, two = f"the {hidden} is red", f"{hidden} and a {hidden} there"
    guesses = model.fill_mask(one, tokenizer, top_k=3, lang="en")
    ids = tokenizer(one, return_tensors="np", lang="en")["input_ids"]
    place = int(np.nonzero(ids[0] == tokenizer.mask_token_id)[0][0])
    chances = np.asarray(jax.nn.softmax(model(ids, langs="en").logits[0, place]))
    best = np.argsort(-chances)[:3]
    assert [guess["token"] for guess in guesses] == best.tolist()
    assert [guess["score"] for guess in guesses] == pytest.approx(chances[best].tolist(), rel=1e-4)
    both = model.fill_mask([one, two], tokenizer, top_k=3, lang="en")
    assert [g["token"] for g in both[0]] == [g["token"] for g in guesses]
    assert [len(guesses) for guesses in both[1]] == [3, 3]
    with pytest.raises(XlmfamError, match="this one is causal"):
        make_xlm(causal=True).fill_mask(one, tokenizer)


def test_translate(tokenizer):
    model = make_xlm("XLMEncoderDecoder", n_layers=1, vocab_size=len(tokenizer))
    texts = ["the house", "a red house is there"]
    both = model.translate(texts, tokenizer, "en", "de", max_length=8, num_beams=2)
    assert len(both) == 2
    assert model.translate(texts[0], tokenizer, "en", "de", max_length=8, num_beams=2) == both[0]
    with pytest.raises(XlmfamError, match="unknown language 'xx'"):
        model.translate(texts, tokenizer, "en", "xx")


@pytest.mark.parametrize("beams", [1, 3])
def test_a_translation_depends_on_neither_neighbours_nor_buckets(ids, beams):
    model = make_xlm("XLMEncoderDecoder", seed=3, n_layers=1)
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    options = {"target_lang": "fr", "max_length": 9, "num_beams": beams}
    both = np.asarray(model.generate(ids, mask, langs=["de", "en"], **options))
    alone = np.asarray(model.generate(ids[1:, :4], langs="en", **options))
    width = alone.shape[1]
    np.testing.assert_array_equal(both[1:, :width], alone)
    assert (both[1, width:] == 2).all()
    assert ((both == 1).sum(-1) == 2).all()  # an end token at both ends
    call = jax.jit(lambda p, i, m: model.generate(i, m, [0, 1], params=p, **options))
    inside = np.asarray(call(model.params, ids, mask))
    assert inside.shape == (2, 9)
    np.testing.assert_array_equal(inside[:, : both.shape[1]], both)


def test_labels_make_the_decoder_s_inputs(ids, run_jitted):
    model = make_xlm("XLMEncoderDecoder", n_layers=1)
    made = run_jitted(model, ids, labels=ids, decoder_langs=np.array([0, 0]))
    given = np.concatenate([np.full((2, 1), 1), ids[:, :-1]], 1)
    whole = run_jitted(
        model, ids, decoder_input_ids=given, labels=ids, decoder_langs=np.array([0, 0])
    )
    close(made.loss, whole.loss)
    with pytest.raises(XlmfamError, match="give a dict as its cache"):
        model(ids, decoder_input_ids=given, cache=model.init_cache(2, 9))
