"""Where XLM differs from transformers 4.37.2 on purpose: what it does, and what xlmfam does.

The README lists the differences. Numbers of transformers are those of tests/data; where they can
be had from xlmfam by doing the same mistake by hand, that is shown too.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from comparing import assert_close, assert_same_tokens, error_of
from golden import GOLDEN, arrays, cases, folder, generation, load_case, resolve
from tiny_xlm import make_xlm, make_xlm_tokenizer
from tolerances import MODEL

from xlmfam import XLMConfig, XLMTokenizer
from xlmfam.common.errors import XlmfamError

TOKENIZER = GOLDEN.parent / "tokenizers" / "xlm"
RECORDED = json.loads((TOKENIZER / "golden.json").read_text(encoding="utf-8"))
CALLS = {case["name"]: case for case in cases("xlm", "calls")}
GENERATED = {case["name"]: case for case in generation("xlm")}


@pytest.fixture(scope="module")
def models():
    """Loads the model of a case once."""
    made = {}

    def get(backend, case, class_name=None):
        key = (backend.name, case["checkpoint"], str(case.get("overrides")), class_name)
        if key not in made:
            made[key] = load_case(backend, "xlm", case, class_name)
        return made[key]

    return get


def run(backend, models, name):
    """Run the first step of a call of the reference.

    Returns:
        The model, the inputs, what came, what should, and what the reference gave where it was
        wrong.
    """
    case = CALLS[name]
    stored, step = arrays(folder("xlm") / case["arrays"]), case["steps"][0]
    model, inputs = models(backend, case), resolve(step["inputs"], stored)
    came = backend.call(model, inputs, **step["flags"])
    wrong = resolve(step.get("reference", {}), stored)
    return model, inputs, came, resolve(step["expected"], stored), wrong


def cross_entropy(scores, right):
    """Return the mean over the labels that are not -100 of minus a log-probability."""
    scores, right = np.asarray(scores, np.float64), np.asarray(right)
    logs = scores - scores.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logs, np.maximum(right, 0)[..., None], -1)[..., 0]
    return -chosen[right != -100].mean()


# ---- labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal/labels", "plain/as_causal"])
def test_causal_labels_are_shifted(backend, models, name):
    _, inputs, came, _, wrong = run(backend, models, name)
    logits, labels = came["logits"], inputs["labels"]
    # transformers: each position is to predict the token that stands there.
    assert wrong["loss"] == pytest.approx(cross_entropy(logits, labels), rel=1e-5)
    # xlmfam: each position is to predict the next token.
    assert came["loss"] == pytest.approx(cross_entropy(logits[:, :-1], labels[:, 1:]), rel=1e-5)
    assert abs(came["loss"] - wrong["loss"]) > 0.01


def test_labels_of_a_masked_model_are_not(backend, models):
    _, inputs, came, expected, wrong = run(backend, models, "plain/labels")
    assert not wrong
    assert came["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
    assert came["loss"] == pytest.approx(cross_entropy(came["logits"], inputs["labels"]), rel=1e-5)


# ---- token types --------------------------------------------------------------------------


def test_token_types_only_when_asked_for():
    tokenizer = XLMTokenizer(TOKENIZER / "vocab.json", TOKENIZER / "merges.txt")
    recorded = RECORDED["calls"][0]
    assert "token_type_ids" in recorded["result"]
    assert "token_type_ids" in RECORDED["documented"]["columns"]
    came = tokenizer(*recorded["args"])
    assert sorted(came) == ["attention_mask", "input_ids"]
    assert dict(tokenizer(*recorded["args"], return_token_type_ids=True)) == recorded["result"]


def test_token_types_are_words_to_the_model(backend, models):
    """Both add the embedding of the *words* 0 and 1, which no checkpoint was trained with."""
    model, inputs, came, expected, _ = run(backend, models, "plain/token_type_ids")
    assert_close(came, expected, MODEL)
    without = {name: value for name, value in inputs.items() if name != "token_type_ids"}
    assert error_of(backend.call(model, without)["logits"], expected["logits"]) > 0.01
    table = backend.parameters(model)["transformer.embeddings.weight"]
    by_hand = table[inputs["input_ids"]] + table[inputs["token_type_ids"]]
    rest = {name: value for name, value in without.items() if name != "input_ids"}
    by_hand = backend.call(model, {**rest, "inputs_embeds": by_hand})
    assert_close({"logits": by_hand["logits"]}, {"logits": expected["logits"]}, MODEL)


# ---- generation ---------------------------------------------------------------------------


def as_transformers_does(backend, model, case):
    """Append a mask token at each step, in ``lang_id``, whatever the model and the languages."""
    ids = np.asarray(case["inputs"]["input_ids"])
    config = model.config
    for _ in range(case["kwargs"]["max_new_tokens"]):
        read = np.concatenate([ids, np.full((len(ids), 1), config.mask_token_id)], 1)
        langs = np.full(read.shape, config.lang_id)
        logits = backend.call(model, {"input_ids": read, "langs": langs})["logits"]
        ids = np.concatenate([ids, logits[:, -1:].argmax(-1)], 1)
        if (ids[:, -1] == 1).all():
            break
    return ids


LANGUAGES = ["greedy_no_langs", "greedy_lang_id", "greedy", "greedy_ends", "masked_langs"]


@pytest.mark.parametrize("name", LANGUAGES)
def test_what_transformers_reads(pt, models, name):
    case = GENERATED[name]
    came = as_transformers_does(pt, models(pt, case, "XLMWithLMHeadModel"), case)
    assert_same_tokens(came, case["reference"]["sequences"])


@pytest.mark.parametrize("name", LANGUAGES)
def test_generation_reads_languages_and_no_mask_token_in_causal_models(backend, models, name):
    case = GENERATED[name]
    model = models(backend, case, "XLMWithLMHeadModel")
    came = backend.generate(model, case["inputs"], **case["kwargs"])
    assert_same_tokens(came, case["expected"]["sequences"])
    assert came.tolist() != case["reference"]["sequences"]


@pytest.mark.parametrize("name", ["greedy_left_padding", "greedy_left_padding_no_langs"])
def test_generation_reads_the_attention_mask(backend, models, name):
    """A padded row goes on as it does alone; in transformers it does not."""
    case = GENERATED[name]
    model = models(backend, case, "XLMWithLMHeadModel")
    came = backend.generate(model, case["inputs"], **case["kwargs"])
    differs = 0
    for row, mask in enumerate(np.asarray(case["inputs"]["attention_mask"])):
        start = int((mask == 0).sum())
        alone = {
            key: np.asarray(value)[row : row + 1, start:] for key, value in case["inputs"].items()
        }
        wanted = backend.generate(model, alone, **case["kwargs"])[0].tolist()
        assert came[row, start:].tolist()[: len(wanted)] == wanted
        differs += case["reference"]["sequences"][row][start:][: len(wanted)] != wanted
    assert differs == len(came)


def test_generation_uses_a_cache(backend, models):
    """transformers reads the whole text at every step: it hands no cache on."""
    case = GENERATED["greedy"]
    model = models(backend, case, "XLMWithLMHeadModel")
    assert model.generates_with_cache
    expected = case["expected"]["sequences"]
    for use_cache in (True, False):
        came = backend.generate(model, case["inputs"], **case["kwargs"], use_cache=use_cache)
        assert_same_tokens(came, expected)
    assert not models(backend, GENERATED["masked_langs"], "XLMWithLMHeadModel").generates_with_cache


# ---- padding ------------------------------------------------------------------------------


def test_left_padding_in_causal_models(backend, models):
    """Each padded row is what it is alone; that of transformers is not."""
    model, inputs, came, expected, wrong = run(backend, models, "causal/left_padding")
    mask = inputs["attention_mask"]
    padded = [row for row in range(len(mask)) if not mask[row].all()]
    assert padded
    for row in padded:
        start = int(mask[row].argmin()) + int((mask[row] == 0).sum())
        alone = {"input_ids": inputs["input_ids"], "langs": inputs["langs"]}
        alone = {name: value[row : row + 1, start:] for name, value in alone.items()}
        wanted = backend.call(model, alone)["logits"][0]
        assert error_of(came["logits"][row, start:], wanted) < MODEL
        assert error_of(np.asarray(wrong["logits"])[row, start:], wanted) > 0.01
        assert error_of(np.asarray(expected["logits"])[row, start:], wanted) < MODEL


def test_left_padding_in_masked_models_is_that_of_transformers(backend, models):
    _, inputs, came, expected, wrong = run(backend, models, "plain/left_padding")
    assert not wrong
    kept = inputs["attention_mask"] == 1
    assert error_of(came["logits"][kept], np.asarray(expected["logits"])[kept]) < MODEL


def test_a_batch_may_be_padded_with_a_generated_padding_id(backend, models):
    """In transformers an id that is ``pad_index`` shortens its row; with a mask it does not."""
    case = CALLS["plain/input_ids"]
    model = models(backend, case)
    ids = np.array([[7, 2, 9, 11]])  # 2 is padding
    shortened = backend.call(model, {"input_ids": ids})["logits"]
    whole = backend.call(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
    lengths = backend.call(model, {"input_ids": ids, "lengths": np.array([3])})["logits"]
    assert_close({"logits": shortened}, {"logits": lengths}, MODEL)
    assert error_of(whole[:, :3], shortened[:, :3]) > 0.01


# ---- adaptive softmax ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["asm/input_ids", "asm/labels", "asm/labels_right_padding"])
def test_adaptive_softmax_works(backend, models, name):
    assert "The reference crashes" in CALLS[name]["notes"]
    _, inputs, came, expected, _ = run(backend, models, name)
    logits = came["logits"].astype(np.float64)
    assert np.exp(logits).sum(-1) == pytest.approx(np.ones(logits.shape[:-1]), rel=1e-5)
    if "labels" in inputs:
        chosen = np.take_along_axis(logits, np.maximum(inputs["labels"], 0)[..., None], -1)[..., 0]
        by_hand = -chosen[inputs["labels"] != -100].mean()
        assert came["loss"] == pytest.approx(by_hand, rel=1e-5)
        assert came["loss"] == pytest.approx(float(np.mean(expected["loss"])), rel=1e-5)


# ---- languages ----------------------------------------------------------------------------


def test_languages_come_with_the_tokenizer(tmp_path):
    """The documented checkpoints have their languages in config.json alone."""
    assert RECORDED["documented"]["lang2id"] is None
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, tmp_path)
    languages = {"en": 0, "fr": 1}
    XLMConfig(n_langs=2, lang2id=languages).save_pretrained(tmp_path)
    tokenizer = XLMTokenizer.from_pretrained(tmp_path)
    assert tokenizer.lang2id == languages
    assert tokenizer.id2lang == {0: "en", 1: "fr"}


def test_languages_by_name(backend, models):
    case = CALLS["plain/langs"]
    names = {"aa": 0, "bb": 1, "cc": 2, "dd": 3}
    n_langs = models(backend, case).config.n_langs
    names = {name: number for name, number in names.items() if number < n_langs}
    model = models(backend, {**case, "overrides": {"lang2id": names}})
    ids = np.array([[7, 9, 11], [12, 8, 6]])
    by_id = backend.call(model, {"input_ids": ids, "langs": np.array([[1] * 3, [0] * 3])})
    by_name = backend.call(model, {"input_ids": ids}, langs=["bb", "aa"])
    assert_close(by_name, by_id, MODEL)
    with pytest.raises(XlmfamError, match=r"unknown language 'zz'.* aa, bb"):
        backend.call(model, {"input_ids": ids}, langs="zz")


# ---- frameworks ---------------------------------------------------------------------------

# transformers has none of these in TensorFlow, and none of anything in Flax.
ONLY_IN_PYTORCH = [
    "plain/head_mask",
    "plain/as_causal",
    "single/input_ids",
    "asm/labels",
    "causal/right_padding",
    "choice/labels",
    "sequence/labels_several",
    "span/positions_outside",
    "beam_span/inference",
    "beam_span/loss_everything",
]


@pytest.mark.parametrize("name", ONLY_IN_PYTORCH)
def test_nothing_is_missing_in_any_framework(backend, models, name):
    _, inputs, came, expected, _ = run(backend, models, name)
    kept = inputs.get("attention_mask")
    assert expected
    for field, value in expected.items():
        mine, theirs = np.asarray(came[field]), np.asarray(value)
        if field == "loss":
            mine, theirs = mine.mean(), theirs.mean()
        elif kept is not None and mine.shape[:2] == kept.shape:
            mine, theirs = mine[kept == 1], theirs[kept == 1]
        if field != "attentions" and field != "hidden_states":
            assert error_of(mine, theirs) < MODEL, field


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sequence/labels", lambda labels: len(labels)),
        ("choice/labels", lambda labels: len(labels)),
        ("token/labels", lambda labels: int((labels != -100).sum())),
        ("plain/labels", lambda labels: int((labels != -100).sum())),
    ],
)
def test_losses_in_tensorflow_are_one_for_each_label(tf, models, name, count):
    """As its pages say; their mean is the loss of PyTorch, which the numbers are of."""
    case = CALLS[name]
    stored, step = arrays(folder("xlm") / case["arrays"]), case["steps"][0]
    inputs = resolve(step["inputs"], stored)
    output = tf.raw_call(models(tf, case), inputs, **step["flags"])
    loss = tf.array(output.loss)
    assert loss.shape == (count(inputs["labels"]),)
    expected = resolve(step["expected"], stored)["loss"]
    assert loss.mean() == pytest.approx(float(np.mean(expected)), rel=1e-5)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A checkpoint whose vocabulary projection is not the word embedding."""
    tokenizer = make_xlm_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return make_xlm(tmp_path_factory.mktemp("untied"), tokenizer, tie_word_embeddings=False)


def test_an_untied_projection_is_used(backend, untied):
    """transformers' TensorFlow models know the word embedding only."""
    model = backend.load("XLMWithLMHeadModel", untied)
    ids = np.array([[0, 20, 21, 1]])
    came = backend.call(model, {"input_ids": ids}, output_hidden_states=True)
    values = backend.parameters(model)
    states, bias = came["hidden_states"][-1], values["pred_layer.proj.bias"]
    with_own = states @ values["pred_layer.proj.weight"].T + bias
    with_words = states @ values["transformer.embeddings.weight"].T + bias
    assert error_of(came["logits"], with_own) < MODEL
    assert error_of(came["logits"], with_words) > 0.01


# ---- decoders and caches ------------------------------------------------------------------


def test_decoders_exist(backend):
    """transformers refuses ``is_encoder=False``."""
    config = XLMConfig(
        vocab_size=31, emb_dim=12, n_heads=3, n_layers=1, is_encoder=False, init_std=0.3
    )
    model = backend.build("XLMModel", config)
    rng = np.random.default_rng(0)
    ids, source = np.array([[1, 7, 8]]), rng.normal(size=(1, 5, 12)).astype(np.float32)
    came = backend.call(model, {"input_ids": ids, "src_enc": source})["last_hidden_state"]
    other = backend.call(model, {"input_ids": ids, "src_enc": -source})["last_hidden_state"]
    assert error_of(other, came) > 0.01  # it looks at the source
    longer = np.array([[1, 7, 8, 9]])
    longer = backend.call(model, {"input_ids": longer, "src_enc": source})["last_hidden_state"]
    assert error_of(longer[:, :3], came) < MODEL  # and not ahead


def test_caches_are_numbered_by_layer(backend, models):
    """transformers counts the attention modules that were ever made in the process."""
    for _ in range(2):
        model = load_case(backend, "xlm", CALLS["causal/input_ids"], "XLMWithLMHeadModel")
        cache = {"slen": 0}
        backend.raw_call(model, {"input_ids": np.array([[7, 8, 9]])}, cache=cache)
        assert set(cache) == {"slen", *range(model.config.n_layers)}
        assert int(cache["slen"]) == 3


# ---- smaller things -----------------------------------------------------------------------


def test_the_kind_of_problem_is_not_written_into_the_config(backend, models):
    """transformers keeps what it guessed from the first labels, and goes by it from then on."""
    model, *_ = run(backend, models, "sequence/labels")
    assert model.config.problem_type is None
    _, inputs, came, expected, _ = run(backend, models, "sequence/labels_several")
    assert inputs["labels"].dtype == np.float32
    assert np.mean(came["loss"]) == pytest.approx(float(np.mean(expected["loss"])), rel=1e-5)
    assert model.config.problem_type is None


def test_mistakes_are_named(backend, models):
    """transformers: a broadcast error, an assertion, an attribute error, or not a word."""
    model = models(backend, CALLS["plain/input_ids"])
    most, width = model.config.max_position_embeddings, model.config.emb_dim
    ids = np.full((1, 3), 7)
    with pytest.raises(XlmfamError, match="max_position_embeddings"):
        backend.call(model, {"input_ids": np.full((1, most + 1), 7)})
    with pytest.raises(XlmfamError, match="lengths"):
        backend.call(model, {"input_ids": ids, "lengths": np.array([4])})
    with pytest.raises(XlmfamError, match="neither"):
        backend.call(model, {})
    with pytest.raises(XlmfamError, match="both"):
        backend.call(
            model, {"input_ids": ids, "inputs_embeds": np.zeros((1, 3, width), np.float32)}
        )
