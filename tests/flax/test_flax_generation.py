"""Generation in Flax: what golden numbers do not show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.flax import XGLMForCausalLM, generation

FREE = {"eos_token_id": None, "pad_token_id": 1}


class Letters:
    """A tokenizer: every id is two letters."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(97 + i % 26) + chr(97 + i // 26) for i in ids)


def compiled():
    return [f._cache_size() for f in (generation.prefill, generation.start, generation.run)]


@pytest.mark.parametrize(("length", "size"), [(1, 16), (16, 16), (17, 32), (33, 64), (65, 128)])
def test_buckets(length, size):
    assert generation.bucket(length) == size


def test_a_call_of_the_same_bucket_compiles_nothing(model, ids):
    model.generate(ids, max_new_tokens=6, **FREE)
    before = compiled()
    model.generate(ids, max_new_tokens=6, **FREE)
    model.generate(ids[:, :4], max_new_tokens=9, min_new_tokens=2, **FREE)
    model.generate(ids[::-1, 1:], max_length=8, **FREE)
    other = jax.tree.map(lambda x: x * 1.01, model.params)
    model.generate(ids, max_new_tokens=3, params=other, **FREE)
    assert compiled() == before
    model.generate(ids, max_new_tokens=6, repetition_penalty=1.1, **FREE)
    assert compiled()[0] == before[0]  # other options, same prompts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "bad_words_ids": [[5, 7], [9]]},
        {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 9, "top_p": 0.8, "seed": 3},
        {"use_cache": False},
    ],
)
def test_inside_jit_as_outside(model, ids, options):
    """Inside there are no buckets, so this also shows that buckets do not show."""
    options = {**options, "max_new_tokens": 7, "eos_token_id": [25, 4], "pad_token_id": 1}
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    outside = np.asarray(model.generate(ids, mask, **options))
    call = jax.jit(lambda p, i, m: model.generate(i, m, params=p, **options))
    inside = np.asarray(call(model.params, ids, mask))
    assert inside.shape[1] == 14
    np.testing.assert_array_equal(inside[:, : outside.shape[1]], outside)
    assert (inside[:, outside.shape[1] :] == 1).all()


def test_left_padding_is_each_prompt_alone(model, ids):
    mask = np.ones_like(ids)
    mask[0, :3], mask[1, :1] = 0, 0
    batch = np.asarray(model.generate(np.where(mask, ids, 1), mask, max_new_tokens=5, **FREE))
    for row, pad in enumerate((3, 1, 0)):
        alone = model.generate(ids[row : row + 1, pad:], max_new_tokens=5, **FREE)
        np.testing.assert_array_equal(batch[row, pad:], alone[0])
    guessed = model.generate(np.where(mask, ids, 1), max_new_tokens=5, **FREE)
    np.testing.assert_array_equal(guessed, batch)


def test_greedy_is_the_argmax_of_the_model(model, ids):
    found = np.asarray(model.generate(ids, max_new_tokens=4, **FREE))
    for column in range(7, 11):
        logits = model(found[:, :column], last_logits_only=True).logits
        np.testing.assert_array_equal(logits[:, -1].argmax(-1), found[:, column])


def test_scores_only_when_asked(model, ids):
    plain = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, **FREE)
    assert list(plain.keys()) == ["sequences"]
    options = {"return_dict_in_generate": True, "output_scores": True}
    output = model.generate(ids, max_new_tokens=3, **options, **FREE)
    assert [score.shape for score in output.scores] == [(3, 61)] * 3
    tokens = np.stack([score.argmax(-1) for score in output.scores], 1)
    np.testing.assert_array_equal(tokens, output.sequences[:, 7:])


def test_sampling(model, ids):
    def draw(**kwargs):
        options = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 4, **FREE}
        return np.asarray(model.generate(ids, **options, **kwargs))

    first = draw(seed=1)
    assert first.shape == (12, 15)
    np.testing.assert_array_equal(first[:4, :7], np.repeat(ids[:1], 4, 0))
    np.testing.assert_array_equal(draw(seed=1), first)
    np.testing.assert_array_equal(draw(prng_key=jax.random.key(1)), first)
    assert (draw(seed=2) != first).any()
    assert (first[0] != first[1]).any()
    greedy = model.generate(ids, max_new_tokens=8, **FREE)
    np.testing.assert_array_equal(draw(top_k=1)[::4], greedy)


def test_samples_follow_the_distribution(model, ids):
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 1, "num_return_sequences": 4000}
    drawn = np.asarray(model.generate(ids[:1], seed=0, **options, **FREE))[:, -1]
    expected = jax.nn.softmax(model(ids[:1]).logits[0, -1])
    np.testing.assert_allclose(np.bincount(drawn, minlength=61) / 4000, expected, atol=0.04)


def test_beams(model, ids):
    options = {"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True}
    output = model.generate(ids, max_new_tokens=5, length_penalty=0.0, **options, **FREE)
    scores = np.asarray(output.sequences_scores).reshape(3, 3)
    assert (np.diff(scores, axis=1) <= 0).all()
    # A hypothesis' score is the sum of its log-probabilities.
    logs = jax.nn.log_softmax(model(output.sequences[:, :-1]).logits, -1)
    chosen = jnp.take_along_axis(logs, output.sequences[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(chosen[:, 6:].sum(-1), output.sequences_scores, rtol=1e-4)
    assert output.beam_indices.shape == (9, 5)


def test_encoder(cross_model, ids):
    states = np.random.default_rng(5).normal(size=(3, 5, 24)).astype(np.float32)
    seen = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    extra = {"encoder_hidden_states": states, "encoder_attention_mask": seen}
    found = np.asarray(cross_model.generate(ids, max_new_tokens=3, **extra, **FREE))
    for column in range(7, 10):
        logits = cross_model(found[:, :column], **extra).logits
        np.testing.assert_array_equal(logits[:, -1].argmax(-1), found[:, column])
    with pytest.raises(XlmfamError, match="encoder_hidden_states"):
        cross_model.generate(ids, encoder_hidden_states=states[:2])


@pytest.mark.parametrize("new_tokens", [12, 40])
def test_stop_strings(model, ids, new_tokens):
    letters = Letters()
    free = np.asarray(model.generate(ids, max_new_tokens=new_tokens, **FREE))
    # A string that the second row comes to, and where each row comes to it first.
    stop = letters.decode(free[1, 12:14])
    ends = []
    for row in free:
        hits = [e for e in range(8, len(row) + 1) if stop in letters.decode(row[7:e])]
        ends.append(hits[0] if hits else free.shape[1])
    options = {"stop_strings": [stop], "tokenizer": letters, "max_new_tokens": new_tokens, **FREE}
    found = np.asarray(model.generate(ids, **options))
    assert found.shape[1] == max(ends)
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(found[row, :end], free[row, :end])
        assert (found[row, end:] == 1).all()
    alone = np.asarray(model.generate(ids[1:2], **options))
    assert alone.shape[1] == ends[1]
    with pytest.raises(XlmfamError, match="tokenizer"):
        model.generate(ids, stop_strings="x")


def test_own_processor(model, ids):
    seen = []

    def only_even(tokens, scores, length):
        seen.append(tokens.shape)
        before = tokens[:, length - 1]  # the newest token, wherever the bucket ends
        odd = jnp.arange(scores.shape[-1]) % 2 == 1
        return jnp.where(odd | (jnp.arange(scores.shape[-1]) == before[:, None]), -jnp.inf, scores)

    found = np.asarray(model.generate(ids, max_new_tokens=5, logits_processor=[only_even], **FREE))
    assert (found[:, 7:] % 2 == 0).all()
    assert (found[:, 7:] != found[:, 6:-1]).all()
    assert len(seen) == 2  # traced for the first step and for the loop, no more


def test_no_prompt_and_no_init(model, config):
    bare = XGLMForCausalLM(config, _do_init=False)
    found = bare.generate(max_new_tokens=2, params=model.params, **FREE)
    assert found.shape == (1, 3)
    assert found[0, 0] == config.bos_token_id


def test_the_cache_is_written_in_place(model, ids):
    """No copy of a cache buffer in the loop: it would cost as much as reading it."""
    prompt = ids[:, :5]
    plan = generation.plan_generation(
        model.generation_config.update(max_new_tokens=20, **FREE), 5, 61
    )
    mask = np.ones_like(prompt)
    inputs, lengths, size = generation.lay_out(plan, prompt, mask, {}, bucketed=True)
    search = generation.Search(model.module, model.read, generation.without_lengths(plan), size, ())
    logits, cache = generation.prefill(
        model.module, model.read, 1, size, True, model.params, inputs
    )
    state = generation.start(search, inputs.ids, lengths, logits, jax.random.key(0))
    state = state._replace(cache=cache)
    text = (
        generation.run.lower(search, model.params, inputs, lengths, state, lengths.end)
        .compile()
        .as_text()
    )
    buffer = "f32[12,64,6]"
    assert buffer in text
    assert not [line for line in text.splitlines() if buffer in line and " copy(" in line]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_ids": [[3, 61]]}, "input_ids holds 61"),
        ({"input_ids": [3, 4]}, r"\(batch, sequence\)"),
        ({"input_ids": np.zeros((0, 3), int)}, "not empty"),
        ({"input_ids": [[3, 4]], "attention_mask": [[1, 0]]}, "padding_side='left'"),
        ({"input_ids": [[3, 4]], "attention_mask": [[0, 0]]}, "whole prompt"),
        ({"input_ids": [[3, 4]], "attention_mask": [[1]]}, "attention_mask"),
        ({"input_ids": [[3, 4]], "encoder_hidden_states": np.zeros((1, 2, 24))}, "cross"),
    ],
)
def test_wrong_inputs(model, kwargs, message):
    with pytest.raises(XlmfamError, match=message):
        model.generate(**kwargs)


def test_wrong_options(model, ids):
    with pytest.raises(ConfigError, match="no option streamer"):
        model.generate(ids, streamer=1)
    with pytest.raises(ConfigError, match="nothing can"):
        model.generate(ids, max_length=7)
    with pytest.raises(XlmfamError, match="inside"):
        jax.jit(lambda i: model.generate(i, stop_strings="x", tokenizer=Letters()))(ids)
