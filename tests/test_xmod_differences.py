"""Where X-MOD differs from transformers 4.37.2 on purpose: what it does, and what xlmfam does.

The README lists the differences. Numbers of transformers, and the kinds of errors it ends in, are
those of tests/data; where its mistakes can be had from xlmfam by making them by hand, that is shown
too.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from comparing import assert_close, assert_same_tokens, error_of
from golden import GOLDEN, LoadedOnce, arrays, cases, folder, generation, load_case, resolve
from tolerances import MODEL

from xlmfam import XmodConfig
from xlmfam.common.errors import ConfigError, XlmfamError

REFUSED = json.loads((folder("xmod") / "refusals.json").read_text(encoding="utf-8"))
ERRORS = REFUSED["errors"]
MANIFEST = json.loads((GOLDEN.parent / "manifests" / "xmod.json").read_text(encoding="utf-8"))
CALLS = {case["name"]: case for case in cases("xmod", "calls")}
GENERATED = {case["name"]: {**case, "class": "XmodForCausalLM"} for case in generation("xmod")}
PAD = 1
TINY = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 17,
    "max_position_embeddings": 19,
    "languages": ["en_XX", "de_DE"],
    "default_language": "en_XX",
}


@pytest.fixture(scope="module")
def models():
    """Loads the model of a case once."""
    return LoadedOnce()


def read(name, step=0):
    """Return inputs, expected numbers and those that the reference gets wrong, of a step."""
    case = CALLS[name]
    stored, step = arrays(folder("xmod") / case["arrays"]), case["steps"][step]
    kinds = ("inputs", "expected", "reference")
    return *(resolve(step[kind], stored) for kind in kinds), stored.get(step.get("valid"))


def codes_of(model, lang_ids):
    """Return nested lists of codes for an array of numbers."""
    if lang_ids.ndim == 0:
        return model.config.languages[int(lang_ids)]
    return [codes_of(model, row) for row in lang_ids]


# ---- languages of calls -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("plain/one_language", "languages_by_code"),
        ("plain/languages_per_token", "languages_per_token"),
        ("choice/languages_per_sample", "choices_languages_per_sample"),
        ("choice/languages_per_choice", "choices_languages_per_choice"),
        ("choice/languages_per_token", "choices_languages_per_row"),
    ],
)
def test_languages_by_code_and_number_of_samples_tokens_and_choices(backend, models, name, refused):
    assert ERRORS[refused] is not None
    model = models(backend, "xmod", CALLS[name])
    inputs, expected, *_ = read(name)
    came = backend.call(model, inputs)
    assert error_of(came["logits"], expected["logits"]) < MODEL
    codes = codes_of(model, inputs.pop("lang_ids"))
    by_code = backend.call(model, inputs, lang_ids=codes)
    assert_close({"logits": by_code["logits"]}, {"logits": came["logits"]}, MODEL)
    other = backend.call(model, inputs, lang_ids=model.config.languages[0])
    assert error_of(other["logits"], expected["logits"]) > 0.01


# ---- generation ---------------------------------------------------------------------------


def as_transformers_does(backend, model, case):
    """Go on in the default language, with positions that count padding once there is a cache."""
    ids = np.asarray(case["inputs"]["input_ids"])
    mask = np.asarray(case["inputs"].get("attention_mask", np.ones_like(ids)))
    done = np.zeros(len(ids), bool)
    given = {"input_ids": ids, "attention_mask": mask}
    for _ in range(case["kwargs"]["max_new_tokens"]):
        output = backend.raw_call(model, given, use_cache=True)
        best = backend.array(output.logits)[:, -1].argmax(-1)
        best = np.where(done, PAD, best)[:, None]
        done |= best[:, 0] == model.config.eos_token_id
        given = {
            "input_ids": best,
            "position_ids": np.full(best.shape, ids.shape[1] + PAD + 1),
            "past_key_values": output.past_key_values,
        }
        ids, mask = np.concatenate([ids, best], 1), np.pad(mask, ((0, 0), (0, 1)), "edge")
        given["attention_mask"] = mask
        if done.all():
            break
    return ids


@pytest.mark.parametrize(
    "name",
    [
        "greedy_languages",
        "greedy_languages_per_token",
        "greedy_left_padding",
        "greedy_default_left_padding",
    ],
)
def test_what_transformers_generates(pt, models, name):
    case = GENERATED[name]
    came = as_transformers_does(pt, models(pt, "xmod", case), case)
    assert_same_tokens(came, case["reference"]["sequences"])
    assert case["reference"]["sequences"] != case["expected"]["sequences"]


def test_generation_honours_languages(backend, models):
    """Here one for each token, by code; new tokens go on in the last one's."""
    case = GENERATED["greedy_languages_per_token"]
    assert not np.all(case["inputs"]["attention_mask"])
    model, inputs = models(backend, "xmod", case), dict(case["inputs"])
    codes = codes_of(model, np.asarray(inputs.pop("lang_ids")))
    came = backend.generate(model, inputs, lang_ids=codes, **case["kwargs"])
    assert_same_tokens(came, case["expected"]["sequences"])
    assert came.tolist() != case["reference"]["sequences"]


# ---- frameworks, and languages that come and go -------------------------------------------


def test_every_class_is_in_every_framework(backend):
    """transformers has the classes in PyTorch alone."""
    names = REFUSED["classes"]["pt"]
    assert "XmodForMultipleChoice" in names
    assert not REFUSED["classes"]["tf"]
    assert not REFUSED["classes"]["flax"]
    prefix = {"pt": "", "tf": "TF", "flax": "Flax"}[backend.name]
    for name in names:
        assert backend.cls(prefix + name) is backend.cls(name)


def test_languages_come_and_go(backend, tmp_path):
    """transformers can set a default and freeze adapters, no more."""
    methods = {"freeze_embeddings_and_language_adapters", "set_default_language"}
    assert set(REFUSED["methods"]) == methods
    model = load_case(backend, "xmod", CALLS["plain/one_language"])
    inputs, expected, *_ = read("plain/one_language")
    assert (inputs["lang_ids"] == model.config.lang2id["sw_KE"]).all()
    mixed, of_mixed, *_ = read("plain/languages_per_token")

    model.add_language("fr_XX", init_from="sw_KE")
    ids = {"input_ids": inputs["input_ids"]}
    came = backend.call(model, ids, lang_ids="fr_XX")
    assert error_of(came["logits"], expected["logits"]) < MODEL
    assert error_of(backend.call(model, mixed)["logits"], of_mixed["logits"]) < MODEL

    model.remove_languages("sw_KE")
    with pytest.raises(XlmfamError, match=r"unknown language 'sw_KE'.* en_XX, de_DE, fr_XX"):
        backend.call(model, ids, lang_ids="sw_KE")
    backend.save(model, tmp_path)
    fewer = backend.load("XmodForMaskedLM", tmp_path, languages=["fr_XX"])
    assert fewer.config.languages == ["fr_XX"]
    assert not any(".en_XX." in name for name in backend.parameters(fewer))
    came = backend.call(fewer, ids, lang_ids="fr_XX")
    assert error_of(came["logits"], expected["logits"]) < MODEL


# ---- caches -------------------------------------------------------------------------------


def behind_a_cache(backend, models, name, positions=None):
    """Return the logits of a case's second step."""
    (first, *_), (second, *_) = read(name, 0), read(name, 1)
    model = models(backend, "xmod", CALLS[name])
    past = backend.raw_call(model, first, use_cache=True).past_key_values
    told = {} if positions is None else {"position_ids": positions}
    return backend.call(model, {**second, **told, "past_key_values": past})["logits"]


def counting_from(start, inputs):
    """Return positions one after the other for the tokens of inputs."""
    rows, new = next(
        inputs[key].shape[:2] for key in ("input_ids", "inputs_embeds") if key in inputs
    )
    return np.broadcast_to(np.arange(start, start + new), (rows, new)).copy()


def test_positions_behind_a_cache_leave_padding_out(backend, models):
    name = "causal/past_left_padding"
    inputs, expected, wrong, valid = read(name, 1)
    mask = inputs["attention_mask"]
    kept = mask.shape[1] - inputs["input_ids"].shape[1]
    padded = ~mask.all(-1)
    assert padded.any()
    assert not padded.all()
    came = behind_a_cache(backend, models, name)
    assert error_of(came[valid], expected["logits"][valid]) < MODEL
    # transformers: as many positions as the cache has columns are behind.
    by_hand = behind_a_cache(backend, models, name, counting_from(kept + PAD + 1, inputs))
    assert error_of(by_hand[valid], wrong["logits"][valid]) < MODEL
    for row in np.flatnonzero(padded):
        assert error_of(wrong["logits"][row], expected["logits"][row]) > 0.01
    for row in np.flatnonzero(~padded):
        assert error_of(wrong["logits"][row], expected["logits"][row]) < MODEL


def test_positions_of_vectors_behind_a_cache_go_on(backend, models):
    name = "causal/past_inputs_embeds"
    inputs, expected, wrong, _ = read(name, 1)
    came = behind_a_cache(backend, models, name)
    assert error_of(came, expected["logits"]) < MODEL
    assert error_of(came, wrong["logits"]) > 0.01
    # transformers: they start again.
    by_hand = behind_a_cache(backend, models, name, counting_from(PAD + 1, inputs))
    assert error_of(by_hand, wrong["logits"]) < MODEL


def test_relative_positions_behind_a_cache(backend, models):
    """Of several new tokens at once; the expected numbers are those without a cache."""
    name = "relative_key/past"
    inputs, expected, wrong, _ = read(name, 1)
    assert inputs["input_ids"].shape[1] > 1
    came = behind_a_cache(backend, models, name)
    assert error_of(came, expected["logits"]) < MODEL
    assert error_of(wrong["logits"][:, :-1], came[:, :-1]) > 0.01


@pytest.mark.parametrize("name", ["relative_key/past", "relative_key_query/past"])
def test_what_transformers_takes_for_relative_positions(pt, name):
    """All new tokens have the distances of the last of them."""
    model = load_case(pt, "xmod", CALLS[name])
    tables = [p for key, p in model.named_parameters() if "distance_embedding" in key]
    right = [table.detach().clone() for table in tables]
    inputs, _, wrong, _ = read(name, 1)
    past = pt.raw_call(model, read(name)[0], use_cache=True).past_key_values
    ids, logits = inputs.pop("input_ids"), []
    for place in range(ids.shape[1]):
        farther = ids.shape[1] - 1 - place  # from everything, than the token really is
        for table, values in zip(tables, right, strict=True):
            table.data = values.roll(-farther, 0)
        given = {**inputs, "input_ids": ids[:, place : place + 1], "past_key_values": past}
        output = pt.raw_call(model, given, use_cache=True)
        past = output.past_key_values
        logits.append(pt.array(output.logits))
    assert error_of(np.concatenate(logits, 1), wrong["logits"]) < MODEL


# ---- adapters -----------------------------------------------------------------------------


def test_a_factor_that_is_no_whole_number(backend, models):
    assert ERRORS["factor_float"] == ERRORS["factor_whole_float"] == "TypeError"
    name = "sequence/labels"
    model = models(backend, "xmod", CALLS[name])
    config = model.config
    assert (config.hidden_size, config.adapter_reduction_factor) == (12, 2.5)
    shapes = {name: value.shape for name, value in backend.parameters(model).items()}
    widths = {shape[0] for name, shape in shapes.items() if name.endswith("dense1.weight")}
    assert widths == {4}
    assert XmodConfig(**TINY, adapter_reduction_factor=4.0).adapter_size == 3
    inputs, expected, *_ = read(name)
    assert error_of(backend.call(model, inputs)["logits"], expected["logits"]) < MODEL


def freeze(backend, model):
    """Freeze embeddings and adapters; return the canonical names of what is not learned then."""
    labels = model.freeze_embeddings_and_language_adapters()
    if backend.name == "pt":
        return {name for name, p in model.named_parameters() if not p.requires_grad}
    if backend.name == "tf":
        return {name for name, v in model.canonical_variables().items() if not v.trainable}
    from flax.traverse_util import flatten_dict

    flat, rows = flatten_dict(labels), model.paths()
    return {row.name for path, row in rows.items() if flat[path] == "frozen"}


def test_the_base_can_be_frozen(backend):
    """What transformers freezes in its other classes, and in the base, which it cannot."""
    assert ERRORS["freezing_the_base"] == "AttributeError"
    variant = MANIFEST["variants"]["plain"]
    assert variant["classes"]["XmodModel"]["frozen"] is None
    listed = set(variant["classes"]["XmodForMaskedLM"]["frozen"])
    plain = folder("xmod") / "plain"
    assert freeze(backend, backend.load("XmodForMaskedLM", plain)) == listed
    base = backend.load("XmodModel", plain, add_pooling_layer=False)
    assert freeze(backend, base) == {name.removeprefix("roberta.") for name in listed}


# ---- smaller things -----------------------------------------------------------------------


def test_the_kind_of_problem_is_not_written_into_the_config(backend, models):
    """transformers keeps what it guessed from the first labels, and goes by it from then on."""
    assert REFUSED["problem_type"] == {"before": None, "after": "single_label_classification"}
    for name in ("sequence/labels", "sequence/labels_several"):
        model = models(backend, "xmod", CALLS[name])
        inputs, expected, *_ = read(name)
        loss = backend.call(model, inputs)["loss"]
        assert loss == pytest.approx(float(expected["loss"]), rel=1e-5)
        assert model.config.problem_type is None


def test_mistakes_are_named(backend, models):
    """transformers: an index error in the middle of the work, or not a word."""
    assert ERRORS["language_below_zero"] is None
    assert ERRORS["positions_of_no_kind"] is None
    assert {ERRORS["language_beyond_the_last"], ERRORS["text_too_long"]} == {"IndexError"}
    assert ERRORS["id_beyond_the_vocabulary"] == "IndexError"
    model, ids = models(backend, "xmod", CALLS["plain/input_ids"]), np.full((2, 7), 7)
    for wrong in (-1, 3):
        with pytest.raises(XlmfamError, match=f"lang_ids holds {wrong}; .* 3 languages: en_XX"):
            backend.call(model, {"input_ids": ids, "lang_ids": np.array([0, wrong])})
    with pytest.raises(XlmfamError, match="lang_ids must have shape"):
        backend.call(model, {"input_ids": ids, "lang_ids": np.array([0, 1, 2])})
    with pytest.raises(XlmfamError, match="position_ids"):
        backend.call(model, {"input_ids": np.full((1, 30), 7)})
    with pytest.raises(XlmfamError, match="input_ids"):
        backend.call(model, {"input_ids": np.full((1, 2), 53)})
    with pytest.raises(ConfigError, match="position_embedding_type must be one of absolute"):
        XmodConfig(**TINY, position_embedding_type="none")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("plain/labels", lambda inputs: int((inputs["labels"] != -100).sum())),
        ("causal/labels", lambda inputs: int((inputs["labels"][:, 1:] != -100).sum())),
        ("token/labels", lambda inputs: int((inputs["labels"] != -100).sum())),
        ("sequence/labels", lambda inputs: len(inputs["labels"])),
        ("choice/labels", lambda inputs: len(inputs["labels"])),
        ("span/positions", lambda inputs: len(inputs["start_positions"])),
    ],
)
def test_losses_in_tensorflow_are_one_for_each_label(tf, models, name, count):
    """Their mean is the loss of PyTorch, which the numbers are of."""
    inputs, expected, *_ = read(name)
    model = models(tf, "xmod", CALLS[name])
    loss = tf.array(tf.raw_call(model, inputs, **CALLS[name]["steps"][0]["flags"]).loss)
    assert loss.shape == (count(inputs),)
    assert loss.mean() == pytest.approx(float(np.mean(expected["loss"])), rel=1e-5)
