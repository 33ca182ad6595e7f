"""Generation options: defaults, errors, files, and the plan that a call makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from xlmfam import GenerationConfig, XGLMConfig
from xlmfam.common.errors import ConfigError
from xlmfam.common.generation import plan_generation
from xlmfam.common.generation.config import DEFAULTS, REFUSED

DATA = Path(__file__).parents[1] / "data"
MANIFEST = json.loads((DATA / "manifests" / "xglm.json").read_text())["generation_config"]


def plan(prompt=4, vocab=50, **options):
    return plan_generation(GenerationConfig(**options), prompt, vocab)


def test_defaults_are_the_reference_s():
    theirs = MANIFEST["defaults"]
    own = {"stop_strings", "seed"}
    assert {k: v for k, v in DEFAULTS.items() if k not in own} == {
        name: theirs[name] for name in DEFAULTS if name not in own
    }
    assert {k: v for k, v in REFUSED.items() if k != "max_time"}.items() <= theirs.items()


def test_from_a_model_config():
    theirs = {k: v for k, v in MANIFEST["from_model"].items() if k in DEFAULTS}
    assert GenerationConfig.from_model_config(XGLMConfig()).to_diff_dict() == theirs
    older = XGLMConfig(num_beams=4, length_penalty=0.5, max_length=50)
    assert GenerationConfig.from_model_config(older).num_beams == 4
    assert GenerationConfig.from_model_config(older).max_length == 50


def test_file_round_trip_keeps_unknown_keys(tmp_path):
    options = GenerationConfig(num_beams=3, eos_token_id=[2, 5], transformers_version="4.37.2", x=1)
    options.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert again == options
    assert again.to_diff_dict()["x"] == 1
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "num_beams": 3,
        "eos_token_id": [2, 5],
        "transformers_version": "4.37.2",
        "x": 1,
    }
    assert GenerationConfig.from_pretrained(tmp_path, num_beams=2).num_beams == 2
    with pytest.raises(ConfigError, match=r"has no generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path / "..", local_files_only=True)


def test_updates_are_copies_and_know_their_names():
    options = GenerationConfig(bad_words_ids=[[4]])
    changed = options.update(top_k=3)
    assert (options.top_k, changed.top_k) == (50, 3)
    changed.bad_words_ids.append([5])
    assert options.bad_words_ids == [[4]]
    with pytest.raises(ConfigError, match=r"no option top_kk; it has .*top_k"):
        options.update(top_kk=3)


WRONG = {
    "max_new_tokens": ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1"),
    "true_beams": ({"num_beams": True}, "num_beams must be an integer"),
    "float_beams": ({"num_beams": 2.0}, "num_beams must be an integer"),
    "top_k": ({"top_k": -1}, "top_k must be an integer of at least 0"),
    "temperature": ({"temperature": 0.0}, "temperature must be a positive number.*do_sample=False"),
    "nan": ({"temperature": float("nan")}, "temperature must be a positive number"),
    "top_p": ({"top_p": 1.2}, r"top_p must lie in \(0, 1\]"),
    "typical": ({"typical_p": 0.0}, r"typical_p must lie in \(0, 1\]"),
    "repetition": ({"repetition_penalty": 0}, "repetition_penalty must be positive"),
    "early": ({"early_stopping": "now"}, "early_stopping must be True, False or 'never'"),
    "decay": ({"exponential_decay_length_penalty": (1,)}, "must be \\(start, factor\\)"),
    "words": ({"bad_words_ids": [4]}, "bad_words_ids must be a list of non-empty lists"),
    "no_words": ({"bad_words_ids": [[]]}, "bad_words_ids must be a list of non-empty lists"),
    "greedy": ({"num_return_sequences": 2}, "needs do_sample=True or num_beams > 1"),
    "returns": ({"num_return_sequences": 4, "num_beams": 3}, "cannot exceed num_beams"),
    "groups": ({"num_beam_groups": 2}, "num_beam_groups=2 is not supported"),
    "contrastive": ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 is not supported"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=list(WRONG))
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**options)
    with pytest.raises(ConfigError, match=message):
        GenerationConfig().update(**options)


def test_options_switched_off_are_accepted():
    GenerationConfig(**REFUSED)


def test_plan_of_lengths():
    assert plan(max_length=9).new_tokens == 5
    assert plan(max_length=3, max_new_tokens=7).max_length == 11
    assert plan(min_new_tokens=3, max_new_tokens=3).min_length == 7
    assert plan(min_length=6).min_length == 6
    with pytest.raises(ConfigError, match="prompt has 20 tokens and max_length is 20"):
        plan(prompt=20)
    with pytest.raises(ConfigError, match=r"min_length \(9\) exceeds max_length \(6\)"):
        plan(min_length=9, max_new_tokens=2)


def test_plan_of_tokens():
    assert plan(eos_token_id=2).eos_token_id == (2,)
    assert plan(eos_token_id=[2, 7]).pad_token_id == 2
    assert plan(eos_token_id=[2, 7], pad_token_id=1).pad_token_id == 1
    assert plan().pad_token_id == 0
    words = plan(bad_words_ids=[[2], [3, 2], [4]], eos_token_id=2).bad_words_ids
    assert words == ((3, 2), (4,))


@pytest.mark.parametrize(
    "options",
    [
        {"eos_token_id": 50},
        {"pad_token_id": -1},
        {"suppress_tokens": [3, 99]},
        {"begin_suppress_tokens": [50]},
        {"forced_bos_token_id": 50},
        {"forced_eos_token_id": [1, 50]},
        {"bad_words_ids": [[3, 50]]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_plan_refuses_ids_outside_the_vocabulary(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} .*outside the vocabulary of 50"):
        plan(**options)


def test_plans_are_hashable_and_equal_by_value():
    options = {"bad_words_ids": [[3, 4]], "exponential_decay_length_penalty": [2, 1.5]}
    assert hash(plan(**options)) == hash(plan(**options))
    assert plan(**options) == plan(**options)
    assert plan(**options) != plan(top_k=2, **options)
    assert plan(top_k=None, top_p=None, typical_p=None).top_k == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponential_decay_length_penalty": 3}, r"\(start, factor\), got 3"),
        ({"length_penalty": None}, "length_penalty must be a number, got None"),
        ({"seed": "a"}, "seed must be an integer of 64 bits, got 'a'"),
        ({"seed": 2**70}, "seed must be an integer of 64 bits"),
        ({"eos_token_id": "2"}, "eos_token_id must be one id or a list of ids, got '2'"),
        ({"suppress_tokens": ["a"]}, "suppress_tokens must be one id or a list of ids"),
        ({"bad_words_ids": [["a"]]}, "bad_words_ids must be one id or a list of ids"),
        ({"pad_token_id": "x"}, "pad_token_id must be one id, got 'x'"),
    ],
)
def test_wrong_kinds_of_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        plan(max_new_tokens=2, **options)


def test_numbers_of_numpy_are_numbers():
    made = plan(max_new_tokens=np.int64(2), eos_token_id=np.int64(2))
    assert (made.max_length, made.eos_token_id) == (6, (2,))
