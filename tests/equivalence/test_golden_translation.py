"""The encoder-decoder of the original release, in every backend."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
from beam_rules import search
from comparing import assert_close, assert_same_tokens
from golden import arrays, cases, folder, gradient_scales, named, resolve
from safetensors.numpy import load_file, save_file
from tolerances import MODEL

from xlmfam import XLMConfig

FAMILY, HEAD = "xlm", "XLMEncoderDecoder"
SECTION = cases(FAMILY, "translation")
FORWARD = SECTION["forward"]
STORED = arrays(folder(FAMILY) / SECTION["arrays"])
EXPECTED = resolve(FORWARD["expected"], STORED)
VALID = STORED[FORWARD["valid"]]
LABELS = STORED[FORWARD["labels"]]
# What the original's arguments are called here.
ARGUMENTS = {
    "source": "input_ids",
    "source_lengths": "lengths",
    "source_langs": "langs",
    "target": "decoder_input_ids",
    "target_lengths": "decoder_lengths",
    "target_langs": "decoder_langs",
}
OPTIONS = {"max_len": "max_length", "beam_size": "num_beams"}
INPUTS = {ARGUMENTS[name]: value for name, value in resolve(FORWARD["inputs"], STORED).items()}


def make_config(**settings):
    params = json.loads((folder(FAMILY) / SECTION["params"]).read_text())
    positions, tied = params.pop("max_positions"), params.pop("share_inout_emb")
    return XLMConfig(
        **params, max_position_embeddings=positions, tie_word_embeddings=tied, **settings
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The original's weights as they are, with a config."""
    path = tmp_path_factory.mktemp("translation")
    make_config(architectures=[HEAD]).save_pretrained(path)
    shutil.copy(folder(FAMILY) / SECTION["weights"], path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def decoder_checkpoint(tmp_path_factory):
    """The decoder by itself."""
    path = tmp_path_factory.mktemp("decoder")
    make_config(architectures=["XLMModel"], is_encoder=False).save_pretrained(path)
    stored = load_file(folder(FAMILY) / SECTION["weights"])
    own = {
        name.removeprefix("decoder."): value
        for name, value in stored.items()
        if name.startswith("decoder.") and "pred_layer" not in name
    }
    save_file(own, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def load(checkpoint):
    loaded = {}

    def get(backend):
        if backend.name not in loaded:
            loaded[backend.name] = backend.load(HEAD, checkpoint)
        return loaded[backend.name]

    return get


def chosen(*fields):
    """What the original gives, where it means something."""
    names = {"encoded": "encoder_last_hidden_state"}
    expected = {names.get(field, field): EXPECTED[field] for field in fields}
    return {name: v[VALID] if name == "logits" else v for name, v in expected.items()}


def assert_output(output, expected, what):
    came = {name: output[name] for name in expected}
    if "logits" in came:
        came["logits"] = came["logits"][VALID]
    assert_close(came, expected, MODEL, what)


# ---- one call -------------------------------------------------------------------------------


def test_forward(backend, load):
    output = backend.call(load(backend), INPUTS)
    assert_output(output, chosen("encoded", "logits"), f"{backend}")
    assert output.get("loss") is None


def test_loss(backend, load):
    output = backend.call(load(backend), {**INPUTS, "labels": LABELS})
    assert_output(output, chosen("encoded", "logits", "loss"), f"{backend}")


def test_masks_instead_of_lengths(backend, load):
    inputs = dict(INPUTS)
    for side in ("", "decoder_"):
        lengths, width = inputs.pop(f"{side}lengths"), inputs[f"{side}input_ids"].shape[1]
        mask = np.arange(width) < lengths[:, None]
        inputs[f"{side}attention_mask"] = mask.astype(np.int64)
    output = backend.call(load(backend), {**inputs, "labels": LABELS})
    assert_output(output, chosen("encoded", "logits", "loss"), f"{backend}")


def test_lengths_from_padding(backend, load):
    inputs = {name: value for name, value in INPUTS.items() if "lengths" not in name}
    assert_output(backend.call(load(backend), inputs), chosen("logits"), f"{backend}")


def test_a_target_made_of_the_labels(backend, load):
    skipped = ("decoder_input_ids", "decoder_lengths")
    inputs = {name: value for name, value in INPUTS.items() if name not in skipped}
    output = backend.call(load(backend), {**inputs, "labels": LABELS})
    assert_output(output, chosen("logits", "loss"), f"{backend}")


def test_what_the_encoder_gave_before(backend, load):
    model = load(backend)
    before = backend.raw_call(model, INPUTS)["encoder_last_hidden_state"]
    skipped = ("input_ids", "langs")
    inputs = {name: value for name, value in INPUTS.items() if name not in skipped}
    for encoded in (before, EXPECTED["encoded"]):
        output = backend.call(model, {**inputs, "encoder_outputs": encoded})
        assert_output(output, chosen("encoded", "logits"), f"{backend}")


def test_gradients(backend, load):
    loss, gradients = backend.loss_and_gradients(load(backend), {**INPUTS, "labels": LABELS})
    assert_close({"loss": loss}, chosen("loss"), MODEL, f"{backend} loss")
    scales = gradient_scales(FORWARD["zero_gradients"], FORWARD["largest_gradient"])
    expected = resolve(FORWARD["gradients"], STORED)
    assert_close(gradients, expected, MODEL, f"{backend} gradients", scales=scales)


def test_the_target_in_steps_with_one_cache(backend, load):
    model, cache, start = load(backend), {"slen": 0}, 0
    for end in FORWARD["cache_steps"]:
        so_far = {name: INPUTS[name][:, :end] for name in ("decoder_input_ids", "decoder_langs")}
        so_far["decoder_lengths"] = np.minimum(INPUTS["decoder_lengths"], end)
        output = backend.call(model, {**INPUTS, **so_far}, cache=cache)
        new = slice(start, end)
        came = {"logits": output["logits"][VALID[:, new]]}
        expected = {"logits": EXPECTED["logits"][:, new][VALID[:, new]]}
        assert_close(came, expected, MODEL, f"{backend} to {end}")
        assert cache["slen"] == end
        start = end


# ---- the decoder by itself ------------------------------------------------------------------


@pytest.mark.parametrize("field", ["states", "states_without_source"])
def test_a_decoder_with_and_without_a_source(backend, decoder_checkpoint, field):
    inputs = {
        "input_ids": INPUTS["decoder_input_ids"],
        "lengths": INPUTS["decoder_lengths"],
        "langs": INPUTS["decoder_langs"],
    }
    if field == "states":
        inputs |= {"src_enc": EXPECTED["encoded"], "src_len": INPUTS["lengths"]}
    output = backend.call(backend.load("XLMModel", decoder_checkpoint), inputs)
    came = {"states": output["last_hidden_state"][VALID]}
    assert_close(came, {"states": EXPECTED[field][VALID]}, MODEL, f"{backend}")


# ---- generation -----------------------------------------------------------------------------

# A beam of one is greedy search here, as it is in the original's own scripts.
TRIED = [case for case in SECTION["generation"] if case["kwargs"].get("beam_size") != 1]


def translate(backend, model, case, **options):
    inputs = {ARGUMENTS[name]: np.array(value) for name, value in case["inputs"].items()}
    options = {OPTIONS.get(n, n): v for n, v in case["kwargs"].items()} | options
    return backend.generate(model, inputs, **options)


@pytest.mark.parametrize(**named(TRIED), argnames="case")
def test_translations(backend, load, case):
    came = translate(backend, load(backend), case)
    assert_same_tokens(came, case["expected"]["sequences"], f"{backend} {case['name']}")


def test_a_beam_of_one_is_greedy_search(backend, load):
    case = next(case for case in TRIED if case["name"] == "greedy")
    came = translate(backend, load(backend), case, num_beams=1, length_penalty=0.3)
    assert_same_tokens(came, case["expected"]["sequences"], f"{backend}")


def test_a_language_by_name(backend, load):
    model, case = load(backend), TRIED[0]
    name = model.config.id2lang[case["kwargs"]["target_lang"]]
    came = translate(backend, model, case, target_lang=name)
    assert_same_tokens(came, case["expected"]["sequences"], f"{backend} {name}")


def test_each_text_by_itself(backend, load):
    """Padding and the other texts of a batch change nothing."""
    case = next(case for case in TRIED if case["name"] == "beam")
    for row, length in enumerate(case["inputs"]["source_lengths"]):
        alone = {name: np.array(v)[row : row + 1] for name, v in case["inputs"].items()}
        alone = {n: v[:, :length] if v.ndim == 2 else v for n, v in alone.items()}
        came = translate(backend, load(backend), {**case, "inputs": alone})
        expected = case["expected"]["sequences"][row][: case["expected"]["lengths"][row]]
        assert_same_tokens(came, [expected], f"{backend} row {row}")


# ---- the rules of the beam ------------------------------------------------------------------

EOS, LONGEST, WIDEST = 1, 9, 3
# Of 30 texts some that end early under some of these options and later under others.
SOURCES = np.random.default_rng(0).integers(6, 47, (30, 5))[[2, 5, 8, 10, 16]]
RULES = [
    (2, 1.0, True),
    (2, 1.0, False),
    (3, 0.5, False),
    (3, 2.0, False),
    (3, 2.0, True),
    (3, -1.0, False),
]


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """Weights that lean to the end token, so that beams finish at every length."""
    path = tmp_path_factory.mktemp("ending")
    make_config(architectures=[HEAD]).save_pretrained(path)
    stored = load_file(folder(FAMILY) / SECTION["weights"])
    stored["decoder.pred_layer.proj.bias"][EOS] += 1.5
    save_file(stored, path / "model.safetensors")
    return path


def step_by_step(backend, model, source):
    """Return what scores running texts: each from the start, in one shape, without a cache."""

    @cache
    def run(texts):
        ids = np.full((WIDEST, LONGEST), 7)
        ids[: len(texts), : len(texts[0])] = texts
        inputs = {
            "input_ids": np.tile(source, (WIDEST, 1)),
            "decoder_input_ids": ids,
            "decoder_attention_mask": np.ones_like(ids),
        }
        inputs |= {"langs": np.zeros((WIDEST, 1), int), "decoder_langs": np.full((WIDEST, 1), 2)}
        logits = backend.call(model, inputs)["logits"]
        scores = logits[: len(texts), len(texts[0]) - 1].astype(np.float64)
        return scores - np.log(np.exp(scores).sum(-1, keepdims=True))

    return lambda texts: run(tuple(map(tuple, texts.tolist())))


@pytest.fixture(scope="module")
def by_the_rules(ending):
    """The texts that the rules give, by backend and options."""
    made = {}

    def get(backend, options):
        if backend.name not in made:
            model = backend.load(HEAD, ending)
            made[backend.name] = model, [step_by_step(backend, model, text) for text in SOURCES]
        model, scorers = made[backend.name]
        return model, [search(scorer, EOS, LONGEST, *options) for scorer in scorers]

    return get


@pytest.mark.parametrize("options", RULES)
def test_the_rules_of_the_beam(backend, by_the_rules, options):
    model, texts = by_the_rules(backend, options)
    beams, penalty, early = options
    came = backend.generate(
        model,
        {"input_ids": SOURCES, "langs": np.zeros((len(SOURCES), 1), int)},
        target_lang=2,
        max_length=LONGEST,
        num_beams=beams,
        length_penalty=penalty,
        early_stopping=early,
    )
    longest = max(len(text) for text in texts)
    expected = [text + [2] * (longest - len(text)) for text in texts]
    assert_same_tokens(came, expected, f"{backend} {options}")


def test_every_option_of_the_beam_matters(backend, by_the_rules):
    results = {str(by_the_rules(backend, options)[1]) for options in RULES}
    assert len(results) == len(RULES)
