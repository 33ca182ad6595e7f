"""What transformers' pages show of X-MOD, done with xlmfam in every backend.

A text goes through the tokenizer into a class, in the language that is set or told with it, and
what comes out is used as readers use it. The numbers are held against another backend, and losses
against sums done here. Nearly all inputs have one shape, which Flax compiles its operations for.
"""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS, get_backend
from comparing import assert_close, error_of
from desk import Desk, binary_cross_entropy, cross_entropy
from tiny_xmod import LANGUAGES, make_xmod, make_xmod_tokenizer
from tolerances import MODEL

from xlmfam import AutoTokenizer, XLMRobertaTokenizer, XLMRobertaTokenizerFast
from xlmfam.common.errors import XlmfamError
from xlmfam.conversion.runners import installed_backends

TEXTS = ["Der Hund schläft.", "The dog sleeps in the garden."]
CODES, LANG_IDS = ["de_DE", "en_XX"], [1, 0]  # the ids are places in config.languages
LENGTH, WIDTH = 32, 24
SAME = {"padding": "max_length", "max_length": LENGTH}
MASKED = "XmodForMaskedLM"
# What is not simply the checkpoint of its class: class and settings.
CHECKPOINTS = {
    "XmodForTokenClassification": ("XmodForTokenClassification", {"num_labels": 5}),
    "regression": ("XmodForSequenceClassification", {"num_labels": 1}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Trained on a little text."""
    return make_xmod_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def desks(tmp_path_factory, tokenizer):
    """Returns the desk of a backend."""
    made, desks = {}, {}

    def folder(checkpoint):
        if checkpoint not in made:
            head, settings = CHECKPOINTS.get(checkpoint, (checkpoint, {}))
            path = tmp_path_factory.mktemp(checkpoint)
            made[checkpoint] = make_xmod(path, tokenizer, head, **settings)
        return made[checkpoint]

    def get(name):
        if name not in desks:
            desks[name] = Desk(get_backend(name), folder, tokenizer)
        return desks[name]

    return get


@pytest.fixture(params=BACKENDS)
def desk(desks, request):
    """Every backend in turn."""
    return desks(request.param)


@pytest.fixture
def agree(desks, desk):
    """Hold the numbers of an example against those of another backend."""

    def check(example, came):
        others = [name for name in installed_backends() if name != desk.backend.name]
        if others:
            what = f"{example.__name__}, {desk.backend.name} against {others[0]}"
            assert_close(came, example(desks(others[0])), MODEL, what)

    return check


def speaking(desk, class_name, code="en_XX", checkpoint=None, **overrides):
    """Return a model that takes texts to be in one language unless they say theirs."""
    model = desk.load(class_name, checkpoint, **overrides)
    model.set_default_language(code)
    return model


def told(desk, **more):
    """Return two texts as inputs, each with its language."""
    return {**desk.encode(TEXTS, **SAME), "lang_ids": desk.tensor(LANG_IDS), **more}


def shown(desk):
    """Return where the two texts have tokens (2, LENGTH)."""
    return desk.tokenizer(TEXTS, **SAME, return_tensors="np")["attention_mask"] == 1


# ---- the tokenizer ------------------------------------------------------------------------


def test_tokenizer_comes_back_from_a_folder(tokenizer, tmp_path):
    make_xmod(tmp_path, tokenizer)
    for loaded in (XLMRobertaTokenizer.from_pretrained(tmp_path), *both_kinds(tmp_path)):
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert loaded(text)["input_ids"] == ids
            assert loaded.decode(ids, skip_special_tokens=True) == text
            assert (ids[0], ids[-1]) == (0, 2)
        first, second = (tokenizer(text)["input_ids"][1:-1] for text in TEXTS)
        assert loaded(*TEXTS)["input_ids"] == [0, *first, 2, 2, *second, 2]


def both_kinds(folder):
    loaded = [AutoTokenizer.from_pretrained(folder, use_fast=fast) for fast in (False, True)]
    assert [type(one) for one in loaded] == [XLMRobertaTokenizer, XLMRobertaTokenizerFast]
    return loaded


# ---- languages ----------------------------------------------------------------------------


def set_languages(desk):
    """The same texts in one language and then in another."""
    inputs, came = desk.encode(TEXTS, **SAME), {}
    for code in CODES:
        output = speaking(desk, "XmodModel", code)(**inputs)
        came[code] = {"states": output.last_hidden_state, "pooled": output.pooler_output}
    return {code: {k: desk.array(v) for k, v in values.items()} for code, values in came.items()}


def test_a_default_language(desk, agree):
    came = set_languages(desk)
    assert came["en_XX"]["states"].shape == (2, LENGTH, WIDTH)
    assert came["en_XX"]["pooled"].shape == (2, WIDTH)
    assert error_of(came["de_DE"]["states"], came["en_XX"]["states"]) > 0.01
    agree(set_languages, came)


def test_a_default_language_is_saved(desk, tmp_path):
    speaking(desk, "XmodModel", "de_DE")
    again = desk.backend.load("XmodModel", desk.backend.save(desk.load("XmodModel"), tmp_path))
    assert again.config.default_language == "de_DE"
    came = desk.array(again(**desk.encode(TEXTS, **SAME)).last_hidden_state)
    assert error_of(came, set_languages(desk)["de_DE"]["states"]) < MODEL


def test_a_language_has_to_be_said(desk):
    model = desk.load("XmodModel", default_language=None)
    with pytest.raises(XlmfamError, match=r"set_default_language\(...\), one of en_XX, de_DE"):
        model(**desk.encode(TEXTS, **SAME))
    with pytest.raises(XlmfamError, match=r"unknown language 'fr_XX'.* en_XX, de_DE, sw_KE"):
        model.set_default_language("fr_XX")


def told_languages(desk):
    """A number for each text of a batch says its language."""
    output = desk.load("XmodModel")(**told(desk))
    return {"states": desk.array(output.last_hidden_state)}


def test_a_language_for_each_text(desk, agree):
    came, alone = told_languages(desk), set_languages(desk)
    for row, code in enumerate(CODES):
        assert error_of(came["states"][row], alone[code]["states"][row]) < MODEL
    agree(told_languages, came)


# ---- hidden words -------------------------------------------------------------------------

PLACE = 2


def hidden_words(desk):
    """A word of each text is hidden, guessed, and the loss taken there alone."""
    mask, whole = desk.tokenizer.mask_token_id, desk.array(told(desk)["input_ids"])
    ids = whole.copy()
    ids[:, PLACE] = mask
    labels = np.where(ids == mask, whole, -100)
    hidden = {"input_ids": desk.tensor(ids), "labels": desk.tensor(labels)}
    outputs = desk.load(MASKED)(**told(desk, **hidden))
    logits = desk.array(outputs.logits)
    assert logits.shape == (2, LENGTH, len(desk.tokenizer))
    by_hand = cross_entropy(logits[:, PLACE], whole[:, PLACE])
    assert desk.loss(outputs) == pytest.approx(by_hand, rel=1e-5)
    return {"logits": logits, "loss": desk.loss(outputs), "best": logits[:, PLACE].argmax(-1)}


def test_hidden_words(desk, agree):
    agree(hidden_words, hidden_words(desk))


def test_hidden_words_from_text_to_text(desk):
    model, tokenizer = speaking(desk, MASKED, "en_XX"), desk.tokenizer
    text = f"Der Hund {tokenizer.mask_token}."
    best, *_ = model.fill_mask(text, tokenizer, lang="de_DE")
    ids = np.asarray(tokenizer(text, return_tensors="np")["input_ids"])
    logits = desk.array(model(desk.tensor(ids), lang_ids="de_DE").logits)
    (scores,) = logits[ids == tokenizer.mask_token_id].astype(np.float64)
    assert best["token"] == scores.argmax()
    chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert best["score"] == pytest.approx(chances.max(), rel=1e-4)
    ids[ids == tokenizer.mask_token_id] = best["token"]
    assert best["sequence"] == tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)


# ---- decoders -----------------------------------------------------------------------------


def decoder(desk):
    """Return a masked model's checkpoint as a decoder, which the pages make of it."""
    return speaking(desk, "XmodForCausalLM", checkpoint=MASKED, is_decoder=True)


def next_words(desk):
    """Each token is to predict the next one; the model shifts the labels."""
    ids = desk.array(told(desk)["input_ids"])
    labels = np.where(shown(desk), ids, -100)
    outputs = decoder(desk)(**told(desk, labels=desk.tensor(labels)))
    logits = desk.array(outputs.logits)
    by_hand = cross_entropy(logits[:, :-1], labels[:, 1:])
    assert desk.loss(outputs) == pytest.approx(by_hand, rel=1e-5)
    return {"logits": logits, "loss": desk.loss(outputs)}


def test_next_words(desk, agree):
    came = next_words(desk)
    both_ways = desk.array(desk.load(MASKED)(**told(desk)).logits)
    assert error_of(came["logits"], both_ways) > 0.01
    agree(next_words, came)


def with_a_cache(desk):
    """Texts are read in two parts, the second with what is kept of the first."""
    inputs, model = told(desk), decoder(desk)
    ids, mask, langs = (inputs[name] for name in ("input_ids", "attention_mask", "lang_ids"))
    half = LENGTH // 2
    first = model(ids[:, :half], lang_ids=langs, attention_mask=mask[:, :half], use_cache=True)
    past = {"past_key_values": first.past_key_values, "use_cache": True}
    second = model(ids[:, half:], lang_ids=langs, attention_mask=mask, **past)
    keys = desk.array(second.past_key_values[0][0])
    return {"first": desk.array(first.logits), "second": desk.array(second.logits), "keys": keys}


def test_a_cache(desk, agree):
    came = with_a_cache(desk)
    assert came["keys"].shape == (2, 4, LENGTH, WIDTH // 4)
    parts, kept = np.concatenate([came["first"], came["second"]], 1), shown(desk)
    assert error_of(parts[kept], next_words(desk)["logits"][kept]) < MODEL
    agree(with_a_cache, came)


PROMPTS = ["Der Hund", "The dog sleeps"]
FROM_THE_RIGHT = {"padding": True, "padding_side": "left", "add_special_tokens": False}


def continued(desk):
    """Two prompts go on, each in its language."""
    prompts = desk.encode(PROMPTS, **FROM_THE_RIGHT)
    langs = desk.tensor(LANG_IDS)
    ids = decoder(desk).generate(**prompts, lang_ids=langs, max_new_tokens=4, eos_token_id=None)
    return {"ids": desk.array(ids)}


def test_generation_takes_the_best_word_each_time(desk, agree):
    ids = continued(desk)["ids"]
    prompts = desk.tokenizer(PROMPTS, **FROM_THE_RIGHT, return_tensors="np")
    start = prompts["input_ids"].shape[1]
    assert ids[:, :start].tolist() == prompts["input_ids"].tolist()
    assert not prompts["attention_mask"].all()
    assert ids.shape == (2, start + 4)
    # On the right, where a decoder does not look, up to the length that was compiled for.
    room = ((0, 0), (0, LENGTH - ids.shape[1]))
    mask = np.pad(prompts["attention_mask"], ((0, 0), (0, 4)), constant_values=1)
    read = {"input_ids": np.pad(ids, room, constant_values=1), "attention_mask": np.pad(mask, room)}
    read = {name: desk.tensor(value) for name, value in read.items()}
    for row, code in enumerate(CODES):
        best = desk.array(decoder(desk)(**read, lang_ids=code).logits).argmax(-1)
        best = best[:, start - 1 : start + 3].tolist()
        assert ids[row, start:].tolist() == best[row]
        assert ids[1 - row, start:].tolist() != best[1 - row]
    agree(continued, {"ids": ids})


# ---- texts into classes -------------------------------------------------------------------

CLASSIFIER = "XmodForSequenceClassification"


def one_class(desk):
    """Cross-lingual inference: texts of several languages in one batch."""
    outputs = desk.load(CLASSIFIER)(**told(desk, labels=desk.tensor([1, 0])))
    return {"logits": desk.array(outputs.logits), "loss": desk.loss(outputs)}


def test_one_class(desk, agree):
    came = one_class(desk)
    assert came["logits"].shape == (2, 2)
    assert came["loss"] == pytest.approx(cross_entropy(came["logits"], [1, 0]), rel=1e-5)
    names = desk.load(CLASSIFIER).config.id2label
    assert {names[int(number)] for number in came["logits"].argmax(-1)} <= {"LABEL_0", "LABEL_1"}
    agree(one_class, came)
    for row, code in enumerate(CODES):
        logits = speaking(desk, CLASSIFIER, code)(**desk.encode(TEXTS, **SAME)).logits
        assert error_of(desk.array(logits)[row], came["logits"][row]) < MODEL


def several_classes(desk):
    model = desk.load(CLASSIFIER, problem_type="multi_label_classification")
    logits = desk.array(model(**told(desk)).logits)
    likely = np.float32(1 / (1 + np.exp(-logits)) > 0.5)
    outputs = model(**told(desk, labels=desk.tensor(likely)))
    other = model(**told(desk, labels=desk.tensor(1 - likely)))
    assert desk.loss(outputs) == pytest.approx(binary_cross_entropy(logits, likely), rel=1e-5)
    assert desk.loss(other) > desk.loss(outputs)
    return {"logits": logits, "loss": desk.loss(outputs), "likely": likely}


def test_several_classes(desk, agree):
    agree(several_classes, several_classes(desk))


def a_number(desk):
    """One label: the text is given a number, and the loss is the squared error."""
    wanted = np.float32([0.25, -1.5])
    outputs = desk.load(CLASSIFIER, "regression")(**told(desk, labels=desk.tensor(wanted)))
    logits = desk.array(outputs.logits)
    assert logits.shape == (2, 1)
    assert desk.loss(outputs) == pytest.approx(np.mean((logits[:, 0] - wanted) ** 2), rel=1e-5)
    return {"logits": logits, "loss": desk.loss(outputs)}


def test_regression(desk, agree):
    agree(a_number, a_number(desk))


def test_another_number_of_labels(desk):
    """A language model becomes a classifier whose head is new."""
    model = desk.load(CLASSIFIER, MASKED, num_labels=7)
    assert len(model.config.id2label) == 7
    outputs = model(**told(desk, labels=desk.tensor([4, 0])))
    logits = desk.array(outputs.logits)
    assert logits.shape == (2, 7)
    assert desk.loss(outputs) == pytest.approx(cross_entropy(logits, [4, 0]), rel=1e-4)
    body = desk.backend.parameters(desk.load(MASKED))
    kept = desk.backend.parameters(model)
    shared = [key for key in body if key.startswith("roberta.")]
    assert shared
    assert all(np.array_equal(kept[key], body[key]) for key in shared)


# ---- one of several texts -----------------------------------------------------------------

PROMPT = "The dog sleeps."
CHOICES = ["It is tired.", "The cat reads."]


def choice(desk):
    """One sample with two choices, in English and with a language for each choice."""
    encoded = desk.encode([PROMPT, PROMPT], CHOICES, **SAME)
    inputs = {name: value[None] for name, value in encoded.items()}
    inputs["labels"] = desk.tensor([0])
    model = speaking(desk, "XmodForMultipleChoice")
    outputs = model(**inputs)
    mixed = model(**inputs, lang_ids=desk.tensor([LANG_IDS]))
    return {
        "logits": desk.array(outputs.logits),
        "loss": desk.loss(outputs),
        "mixed": desk.array(mixed.logits),
    }


def test_multiple_choice(desk, agree):
    came = choice(desk)
    logits, mixed = came["logits"], came["mixed"]
    assert logits.shape == mixed.shape == (1, 2)
    assert logits[0, 0] != logits[0, 1]
    assert came["loss"] == pytest.approx(cross_entropy(logits, [0]), rel=1e-5)
    # Each is scored by itself.
    assert error_of(mixed[:, 1], logits[:, 1]) < MODEL
    assert error_of(mixed[:, 0], logits[:, 0]) > 0.01
    agree(choice, came)


# ---- tokens into classes ------------------------------------------------------------------


def token_classes(desk):
    model = desk.load("XmodForTokenClassification")
    logits = desk.array(model(**told(desk)).logits)
    classes, kept = logits.argmax(-1), shown(desk)
    found = [model.config.id2label[int(number)] for number in classes[kept]]
    assert len(found) == sum(map(len, desk.tokenizer(TEXTS)["input_ids"]))
    right, wrong = (np.where(kept, labels, -100) for labels in (classes, (classes + 1) % 5))
    outputs = model(**told(desk, labels=desk.tensor(right)))
    assert desk.loss(outputs) == pytest.approx(cross_entropy(logits, right), rel=1e-5)
    assert desk.loss(model(**told(desk, labels=desk.tensor(wrong)))) > desk.loss(outputs)
    return {"logits": logits, "loss": desk.loss(outputs)}


def test_token_classes(desk, agree):
    came = token_classes(desk)
    assert came["logits"].shape == (2, LENGTH, 5)
    agree(token_classes, came)


# ---- questions ----------------------------------------------------------------------------

QUESTIONS, STORIES = ["Wer schläft?", "Who sleeps?"], [TEXTS[0], PROMPT]


def answers(desk):
    """A question about each story, in its language."""
    encoded = desk.encode(QUESTIONS, STORIES, **SAME)
    inputs = {**encoded, "lang_ids": desk.tensor(LANG_IDS)}
    model = desk.load("XmodForQuestionAnswering")
    outputs = model(**inputs)
    start, end = desk.array(outputs.start_logits), desk.array(outputs.end_logits)
    first, last = start.argmax(-1), np.array([3, 7])
    ids = desk.array(encoded["input_ids"])
    for row in range(2):
        assert isinstance(desk.tokenizer.decode(ids[row, first[row] : last[row]].tolist()), str)
    where = {"start_positions": desk.tensor(first), "end_positions": desk.tensor(last)}
    loss = desk.loss(model(**inputs, **where))
    by_hand = (cross_entropy(start, first) + cross_entropy(end, last)) / 2
    assert loss == pytest.approx(by_hand, rel=1e-5)
    return {"start": start, "end": end, "loss": loss}


def test_answers(desk, agree):
    came = answers(desk)
    assert came["start"].shape == came["end"].shape == (2, LENGTH)
    assert error_of(came["end"], came["start"]) > 0.01
    agree(answers, came)


# ---- fine-tuning in one language, use in another ------------------------------------------

RATE = 0.1


def learn_pt(model, data):
    import torch

    model.freeze_embeddings_and_language_adapters()
    rule = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    model(**{name: torch.from_numpy(value) for name, value in data.items()}).loss.backward()
    rule.step()


def learn_tf(model, data):
    import keras

    model.freeze_embeddings_and_language_adapters()
    model.compile(optimizer=keras.optimizers.SGD(RATE), run_eagerly=True)
    model.fit(data, verbose=0)


def learn_flax(model, data):
    import jax
    import optax

    labels = model.freeze_embeddings_and_language_adapters()
    kinds = {"trainable": optax.sgd(RATE), "frozen": optax.set_to_zero()}
    rule = optax.multi_transform(kinds, labels)

    @jax.jit
    def step(params, state):
        slopes = jax.grad(lambda params: model(**data, params=params).loss)(params)
        updates, _ = rule.update(slopes, state, params)
        return optax.apply_updates(params, updates)

    model.params = step(model.params, rule.init(model.params))


LEARN = {"pt": learn_pt, "tf": learn_tf, "flax": learn_flax}


def tuned(desk):
    """A step of fine-tuning in English, then texts in German."""
    model = desk.load_anew(CLASSIFIER)
    model.set_default_language("en_XX")
    data = dict(desk.tokenizer(TEXTS, **SAME, return_tensors="np"), labels=np.array([1, 0]))
    LEARN[desk.backend.name](model, data)
    model.set_default_language("de_DE")
    logits = desk.array(model(**desk.encode(TEXTS, **SAME)).logits)
    return {"parameters": desk.backend.parameters(model), "logits": logits}


def test_fine_tuning_and_switching(desk, agree):
    before = desk.backend.parameters(desk.load(CLASSIFIER))
    came = tuned(desk)
    after = came["parameters"]
    assert {code for name in before for code in LANGUAGES if f".{code}." in name} == set(LANGUAGES)
    for name, value in before.items():
        if ".key.bias" in name:  # its gradient is zero but for rounding
            continue
        frozen = "embeddings" in name or "adapter_modules" in name
        assert np.array_equal(after[name], value) == frozen, name
    agree(tuned, came)
