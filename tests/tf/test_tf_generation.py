"""Generation: equal alone and padded, under XLA, without retracing; options of the loop."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from tf_models import randomised, tiny_config

from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.tf import GenerationConfig, XGLMForCausalLM
from xlmfam.tf.generation import bucket

PROMPT = np.array([[5, 9, 12, 7]])
NO_END = {"eos_token_id": None, "pad_token_id": 1}


@pytest.fixture(scope="module")
def generator():
    return randomised(XGLMForCausalLM(tiny_config(add_cross_attention=True)), seed=7)


def slow_greedy(model, ids, steps):
    """What greedy search must give: the whole sequence run again for every token."""
    for _ in range(steps):
        best = np.asarray(model(ids).logits)[:, -1].argmax(-1)
        ids = np.concatenate([ids, best[:, None]], 1)
    return ids


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_the_best_token_every_time(generator, use_cache):
    ids = generator.generate(PROMPT, max_new_tokens=8, use_cache=use_cache, **NO_END)
    np.testing.assert_array_equal(ids, slow_greedy(generator, PROMPT, 8))
    assert ids.dtype == tf.int64


def test_not_within_a_graph(generator):
    with pytest.raises(XlmfamError, match=r"outside of tf.function, with jit_compile=True"):
        tf.function(lambda ids: generator.generate(ids), autograph=False)(tf.constant(PROMPT))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "bad_words_ids": [[9], [5, 6]]},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5},
        {"do_sample": True, "seed": 11, "top_k": 9, "top_p": 0.9, "typical_p": 0.9},
    ],
)
def test_xla_gives_the_same_tokens(generator, options):
    results = [
        generator.generate(PROMPT, max_new_tokens=6, jit_compile=jit, **options)
        for jit in (False, True)
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, **NO_END},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
)
def test_unequal_prompts_together_as_alone(generator, options):
    long, short = [5, 9, 12, 7, 20, 21], [8, 30, 11]
    padded = np.array([long, [1, 1, 1, *short]])
    mask = (padded != 1).astype(int)
    kwargs = {"max_new_tokens": 6, **options}
    if "repetition_penalty" in options:  # it sees the padding, as the reference's does
        kwargs["bad_words_ids"] = [[1]]
    together = generator.generate(padded, attention_mask=mask, **kwargs)
    count = options.get("num_return_sequences", 1)
    for row, prompt in enumerate((long, short)):
        alone = generator.generate(np.array([prompt]), **kwargs).numpy()[:, len(prompt) :]
        got = together.numpy()[row * count : (row + 1) * count, 6:]
        np.testing.assert_array_equal(got[:, : alone.shape[1]], alone)
        assert (got[:, alone.shape[1] :] == 1).all()


def test_calls_of_one_bucket_share_a_graph():
    model = randomised(XGLMForCausalLM(tiny_config()))
    for length, new in ((4, 5), (4, 5), (9, 5), (16, 16), (3, 1)):
        ids = np.full((2, length), 7)
        assert model.generate(ids, max_new_tokens=new, **NO_END).shape == (2, length + new)
        assert model.generation_traces() == 1, (length, new)
    model.generate(np.full((2, 17), 7), max_new_tokens=5, **NO_END)
    assert model.generation_traces() == 2
    model.generate(np.full((2, 4), 7), max_new_tokens=5, min_new_tokens=3, seed=3, **NO_END)
    assert model.generation_traces() == 2


def test_buckets():
    assert [bucket(n) for n in (1, 16, 17, 33, 64, 65, 129)] == [16, 16, 32, 64, 64, 128, 192]


def test_the_bucket_never_shows(generator):
    """A prompt just under and one just over a bucket's edge get what no bucket gives."""
    for length in (15, 16, 17):
        ids = np.random.RandomState(length).randint(4, 37, (1, length))
        got = generator.generate(ids, max_new_tokens=3, **NO_END)
        np.testing.assert_array_equal(got, slow_greedy(generator, ids, 3))


@pytest.mark.parametrize("option", [{"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}])
def test_processors_do_not_see_what_fills_the_bucket(generator, option):
    output = generator.generate(
        PROMPT, max_new_tokens=1, output_scores=True, return_dict_in_generate=True, **option
    )
    logits = generator(PROMPT).logits[0, -1]
    np.testing.assert_allclose(output.scores[0][0, 1], logits[1], atol=2e-5)
    assert abs(float(output.scores[0][0, 9] - logits[9])) > 1e-3  # a token of the prompt


def test_beams_take_their_cache_along(generator):
    options = {"max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 4, **NO_END}
    options["return_dict_in_generate"] = True
    output = generator.generate(PROMPT, **options)
    assert len({tuple(row) for row in output.beam_indices.numpy()}) > 1
    again = generator.generate(PROMPT, use_cache=False, **options)
    np.testing.assert_array_equal(output.sequences, again.sequences)
    np.testing.assert_allclose(output.sequences_scores, again.sequences_scores, atol=1e-5)


def test_sampling_repeats_with_a_seed_only(generator):
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 4, "max_new_tokens": 12}
    first, second = (generator.generate(PROMPT, seed=5, **options).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len({tuple(row) for row in first}) > 1
    assert not np.array_equal(first, generator.generate(PROMPT, seed=6, **options))
    keras.utils.set_random_seed(1)
    first = generator.generate(PROMPT, **options).numpy()
    assert not np.array_equal(first, generator.generate(PROMPT, **options))
    keras.utils.set_random_seed(1)
    np.testing.assert_array_equal(first, generator.generate(PROMPT, **options))


def test_sampling_follows_the_distribution(generator):
    count = 3000
    drawn = generator.generate(
        PROMPT, do_sample=True, top_k=0, num_return_sequences=count, max_new_tokens=1, seed=0
    )
    chances = tf.nn.softmax(generator(PROMPT).logits[0, -1]).numpy()
    frequencies = np.bincount(drawn.numpy()[:, -1], minlength=37) / count
    np.testing.assert_allclose(frequencies, chances, atol=4 * np.sqrt(0.25 / count))


def test_rows_end_on_their_own(generator):
    ids = np.array([[5, 9, 12], [8, 30, 11]])
    free = generator.generate(ids, max_new_tokens=8, **NO_END).numpy()
    end = int(free[0, 4])
    got = generator.generate(ids, max_new_tokens=8, eos_token_id=[end, 3], pad_token_id=1).numpy()
    stop = 3 + int(np.argmax(np.isin(free[0, 3:], [end, 3]))) + 1
    np.testing.assert_array_equal(got[0, :stop], free[0, :stop])
    assert (got[0, stop:] == 1).all()


def test_scores_are_kept_when_asked_for(generator):
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, **NO_END}
    assert generator.generate(PROMPT, **options).scores is None
    output = generator.generate(PROMPT, output_scores=True, **options)
    assert len(output.scores) == 4
    expected = np.asarray(generator(output.sequences).logits)[0, 3:7]
    np.testing.assert_allclose([s[0] for s in output.scores], expected, atol=5e-5)
    beams = generator.generate(PROMPT, num_beams=3, **options)
    assert beams.beam_indices.shape == (1, 4)
    assert beams.sequences_scores.shape == (1,)


class Letters:
    """A tokenizer for the tests: token n is the n-th letter."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(60 + token) for token in ids)


@pytest.mark.parametrize("beams", [1, 2])
def test_stop_strings(generator, beams):
    options = {"max_new_tokens": 8, "num_beams": beams, "tokenizer": Letters(), **NO_END}
    free = generator.generate(PROMPT, **options).numpy()
    text = Letters().decode(free[0, 4:])
    got = generator.generate(PROMPT, stop_strings=text[1:3], **options).numpy()
    if beams == 1:
        np.testing.assert_array_equal(got, free[:, : 4 + text.index(text[1:3]) + 2])
    else:  # beams stop once all of them contain it
        assert got.shape[1] <= free.shape[1]
    with pytest.raises(XlmfamError, match="tokenizer"):
        generator.generate(PROMPT, stop_strings="x")


def test_own_processors_and_criteria(generator):
    def only_nine(ids, scores):
        return tf.where(tf.range(scores.shape[-1]) == 9, scores, -1e9)

    def after_three(ids, scores):
        return ids.shape[1] >= 7

    got = generator.generate(
        PROMPT,
        max_new_tokens=6,
        logits_processor=[only_nine],
        stopping_criteria=[after_three],
        **NO_END,
    )
    np.testing.assert_array_equal(got, [[5, 9, 12, 7, 9, 9, 9]])


def test_encoder_states_are_used(generator):
    states = np.random.RandomState(2).normal(0, 3, (1, 5, 12)).astype("float32")
    mask = np.array([[1, 1, 1, 0, 0]])
    extra = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    ids = PROMPT
    for _ in range(4):
        best = np.asarray(generator(ids, **extra).logits)[:, -1].argmax(-1)
        ids = np.concatenate([ids, best[:, None]], 1)
    got = generator.generate(PROMPT, max_new_tokens=4, **extra, **NO_END)
    np.testing.assert_array_equal(got, ids)
    beams = generator.generate(PROMPT, max_new_tokens=4, num_beams=2, **extra, **NO_END)
    assert beams.shape == (1, 8)


def test_narrow_models_generate():
    model = XGLMForCausalLM(tiny_config(), dtype="mixed_bfloat16")
    assert model.generate(PROMPT, max_new_tokens=3, **NO_END).shape == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": np.array([[5, 40]])}, "outside the vocabulary"),
        ({"input_ids": np.zeros((1, 0), int)}, "not empty"),
        ({"input_ids": PROMPT, "attention_mask": np.array([[1, 1, 1, 0]])}, "on the left"),
        ({"input_ids": PROMPT, "attention_mask": np.zeros((1, 4), int)}, "whole prompt"),
        ({"input_ids": PROMPT, "attention_mask": np.ones((1, 3), int)}, "attention_mask"),
        ({"input_ids": PROMPT, "max_length": 4}, "nothing can be generated"),
        ({"input_ids": PROMPT, "colour": 3}, "no option colour"),
    ],
)
def test_mistakes_are_named(generator, arguments, message):
    with pytest.raises(XlmfamError, match=message):
        generator.generate(**arguments)


def test_the_beginning_token_alone_is_the_default_prompt(generator):
    assert generator.generate(max_new_tokens=2, **NO_END).numpy()[0, 0] == 0
    with pytest.raises(XlmfamError, match="bos_token_id"):
        generator.generate(generation_config=GenerationConfig(max_new_tokens=2))
    with pytest.raises(ConfigError, match="temperature"):
        generator.generate(PROMPT, temperature=0.0)


def test_plan_has_no_lengths_in_its_key(generator):
    generator.generate(PROMPT, max_new_tokens=2, **NO_END)
    plans = [key[0] for key in generator._generators()]
    assert all(dataclasses.asdict(plan)["max_length"] == 0 for plan in plans)
