"""What transformers' pages show of XLM, done with xlmfam in every backend.

A text goes through the tokenizer into a class, and what comes out is used as readers use it. The
numbers are held against another backend, and losses against sums done here.
"""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS, get_backend
from comparing import assert_close
from desk import Desk, binary_cross_entropy, cross_entropy
from tiny_xlm import make_xlm, make_xlm_tokenizer
from tolerances import MODEL

from xlmfam import AutoTokenizer, XLMTokenizer
from xlmfam.conversion.runners import installed_backends

GREETING = "Hello, my dog is cute"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Trained on a little text."""
    return make_xlm_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def desks(tmp_path_factory, tokenizer):
    """Returns the desk of a backend."""
    made, desks = {}, {}

    def folder(checkpoint):
        if checkpoint not in made:
            path = tmp_path_factory.mktemp(checkpoint)
            settings = {"causal": True} if checkpoint == "causal" else {}
            if checkpoint == "XLMForTokenClassification":
                settings = {"num_labels": 5}
            head = checkpoint if checkpoint.startswith("XLM") else "XLMWithLMHeadModel"
            made[checkpoint] = make_xlm(path, tokenizer, head, **settings)
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


# ---- the tokenizer ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pt", "tf", "jax", "np"])
def test_tensors_of_the_tokenizer(tokenizer, kind):
    if kind != "np":
        get_backend("flax" if kind == "jax" else kind)  # skips where it is not installed
    texts = [GREETING, "El perro bebe"]
    rows = tokenizer(texts)["input_ids"]
    encoded = tokenizer(texts, padding=True, return_tensors=kind)
    assert sorted(encoded) == ["attention_mask", "input_ids"]
    modules = {"pt": "torch", "tf": "tensorflow", "jax": "jax", "np": "numpy"}
    assert type(encoded.input_ids).__module__.startswith(modules[kind])
    ids = np.asarray(encoded["input_ids"])
    assert ids[0].tolist() == rows[0]
    assert ids[1].tolist() == rows[1] + [2] * (len(rows[0]) - len(rows[1]))
    assert np.asarray(encoded.attention_mask).sum(-1).tolist() == [len(row) for row in rows]
    asked = tokenizer(GREETING, return_token_type_ids=True, return_tensors=kind)
    assert np.asarray(asked["token_type_ids"]).tolist() == [[0] * len(rows[0])]


def test_tokenizer_comes_back_from_a_folder(tokenizer, tmp_path):
    make_xlm(tmp_path, tokenizer)
    for cls in (XLMTokenizer, AutoTokenizer):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is XLMTokenizer
        assert loaded(GREETING)["input_ids"] == tokenizer(GREETING)["input_ids"]
        assert loaded.lang2id == tokenizer.lang2id


# ---- the model ----------------------------------------------------------------------------


def states_of_a_text(desk):
    inputs = desk.encode(GREETING)
    outputs = desk.load("XLMModel")(**inputs)
    return {"last": desk.array(outputs.last_hidden_state)}


def test_last_hidden_state(desk, agree):
    came = states_of_a_text(desk)
    length = len(desk.tokenizer(GREETING)["input_ids"])
    assert came["last"].shape == (1, length, 24)
    agree(states_of_a_text, came)


def states_of_a_batch(desk):
    texts = [GREETING, "El perro bebe agua fría.", "Der Hund"]
    model = desk.load("XLMModel")
    together = model(**desk.encode(texts, padding=True)).last_hidden_state
    alone = model(**desk.encode(texts[2])).last_hidden_state
    return {"together": desk.array(together), "alone": desk.array(alone)}


def test_padding_changes_nothing(desk, agree):
    came = states_of_a_batch(desk)
    length = came["alone"].shape[1]
    assert length < came["together"].shape[1]
    kept = {"alone": came["together"][2:, :length]}
    assert_close(kept, {"alone": came["alone"]}, MODEL)
    assert not came["together"][2, length:].any()
    agree(states_of_a_batch, came)


# ---- masked words -------------------------------------------------------------------------

FULL = "Der Hund sitzt unter dem Baum."


def hidden_word(desk):
    """A word is hidden, guessed, and the loss taken there alone."""
    tokenizer = desk.tokenizer
    whole = np.asarray(tokenizer(FULL, lang="de", return_tensors="np")["input_ids"])
    place = 2
    ids = whole.copy()
    ids[0, place] = tokenizer.mask_token_id
    labels = np.where(ids == tokenizer.mask_token_id, whole, -100)
    model = desk.load("XLMWithLMHeadModel")
    german = model.config.lang2id["de"]
    inputs = {"input_ids": desk.tensor(ids), "langs": desk.tensor(np.full_like(ids, german))}
    outputs = model(**inputs, labels=desk.tensor(labels))
    logits = desk.array(outputs.logits)
    assert logits.shape == (*ids.shape, len(tokenizer))
    assert desk.loss(outputs) == pytest.approx(
        cross_entropy(logits[0, place], whole[0, place]), rel=1e-5
    )
    return {"logits": logits, "loss": desk.loss(outputs), "guess": logits[0, place].argmax()}


def test_masked_words(desk, agree):
    came = hidden_word(desk)
    assert desk.tokenizer.decode([int(came["guess"])]) is not None
    agree(hidden_word, came)
    # The same in one call, from text.
    model, tokenizer = desk.load("XLMWithLMHeadModel"), desk.tokenizer
    ids = tokenizer(FULL, lang="de")["input_ids"]
    ids[2] = tokenizer.mask_token_id
    text = tokenizer.decode(ids, skip_special_tokens=False)
    text = text.replace(tokenizer.bos_token, "").replace(tokenizer.sep_token, "").strip()
    best, *_ = model.fill_mask(text, tokenizer, lang="de")
    assert tokenizer(text, lang="de")["input_ids"] == ids
    assert best["token"] == came["guess"]
    scores = came["logits"][0, 2].astype(np.float64)
    chance = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert best["score"] == pytest.approx(chance.max(), rel=1e-4)


def test_logits_at_labels_alone(desk):
    came = hidden_word(desk)
    model, tokenizer = desk.load("XLMWithLMHeadModel"), desk.tokenizer
    whole = np.asarray(tokenizer(FULL, lang="de", return_tensors="np")["input_ids"])
    ids = whole.copy()
    ids[0, 2] = tokenizer.mask_token_id
    labels = np.where(ids == tokenizer.mask_token_id, whole, -100)
    outputs = model(
        desk.tensor(ids), langs="de", labels=desk.tensor(labels), labelled_logits_only=True
    )
    assert_close({"logits": desk.array(outputs.logits)}, {"logits": came["logits"][:, 2]}, MODEL)
    assert desk.loss(outputs) == pytest.approx(came["loss"], rel=1e-5)


# ---- languages ----------------------------------------------------------------------------


def languages(desk):
    """The language's number comes from the tokenizer, one for each token."""
    model = desk.load("XLMWithLMHeadModel", "causal")
    inputs = desk.encode("The house stands by the")
    shape = tuple(inputs["input_ids"].shape)
    by_name = {}
    for code in ("en", "fr"):
        langs = desk.tensor(np.full(shape, desk.tokenizer.lang2id[code]))
        by_name[code] = desk.array(model(inputs["input_ids"], langs=langs).logits)
        named = model(inputs["input_ids"], langs=code).logits
        assert_close({"by name": desk.array(named)}, {"by name": by_name[code]}, MODEL)
    return by_name


def test_languages(desk, agree):
    came = languages(desk)
    length = len(desk.tokenizer("The house stands by the")["input_ids"])
    assert came["en"].shape == came["fr"].shape == (1, length, len(desk.tokenizer))
    assert np.abs(came["en"] - came["fr"]).max() > 0.01
    agree(languages, came)


def continued(desk):
    """A causal model goes on in the language that it is given."""
    model = desk.load("XLMWithLMHeadModel", "causal")
    prompt = desk.encode("The house", add_special_tokens=False)
    ids = model.generate(**prompt, langs="en", max_new_tokens=5, do_sample=False)
    return {"ids": desk.array(getattr(ids, "sequences", ids))}


def test_generation_takes_the_best_word_each_time(desk, agree):
    came = continued(desk)
    model = desk.load("XLMWithLMHeadModel", "causal")
    prompt = desk.tokenizer("The house", add_special_tokens=False)["input_ids"]
    ids, start = came["ids"], len(prompt)
    assert ids[0, :start].tolist() == prompt
    best = desk.array(model(desk.tensor(ids), langs="en").logits).argmax(-1)
    assert ids[0, start:].tolist() == best[0, start - 1 : -1].tolist()
    assert ids.shape == (1, start + 5)
    agree(continued, came)


# ---- texts into classes -------------------------------------------------------------------


def one_class(desk):
    inputs = desk.encode(GREETING)
    model = desk.load("XLMForSequenceClassification")
    logits = desk.array(model(**inputs).logits)
    outputs = model(**inputs, labels=desk.tensor(np.array([1])))
    return {"logits": logits, "loss": desk.loss(outputs)}


def test_one_class(desk, agree):
    came = one_class(desk)
    assert came["logits"].shape == (1, 2)
    assert came["loss"] == pytest.approx(cross_entropy(came["logits"], [1]), rel=1e-5)
    config = desk.load("XLMForSequenceClassification").config
    assert config.id2label[int(came["logits"].argmax())].startswith("LABEL_")
    agree(one_class, came)


def several_classes(desk):
    inputs = desk.encode(GREETING)
    kind = "multi_label_classification"
    model = desk.load("XLMForSequenceClassification", problem_type=kind)
    logits = desk.array(model(**inputs).logits)
    likely = np.arange(2)[1 / (1 + np.exp(-logits[0])) > 0.5]
    labels = np.zeros((1, 2), np.float32)
    labels[0, likely] = 1
    outputs = model(**inputs, labels=desk.tensor(labels))
    assert desk.loss(outputs) == pytest.approx(binary_cross_entropy(logits, labels), rel=1e-5)
    return {"logits": logits, "loss": desk.loss(outputs), "likely": labels}


def test_several_classes(desk, agree):
    agree(several_classes, several_classes(desk))


@pytest.mark.parametrize("several", [False, True])
def test_another_number_of_labels(desk, several):
    """A language model becomes a classifier whose head is new."""
    kind = {"problem_type": "multi_label_classification"} if several else {}
    name = "XLMForSequenceClassification"
    model = desk.load(name, "XLMWithLMHeadModel", num_labels=7, **kind)
    assert len(model.config.id2label) == 7
    labels = np.float32([[0, 1, 0, 0, 1, 1, 0]]) if several else np.array([4])
    outputs = model(**desk.encode(GREETING), labels=desk.tensor(labels))
    logits = desk.array(outputs.logits)
    assert logits.shape == (1, 7)
    by_hand = binary_cross_entropy if several else cross_entropy
    assert desk.loss(outputs) == pytest.approx(by_hand(logits, labels), rel=1e-4)
    body = desk.backend.parameters(desk.load("XLMWithLMHeadModel"))
    kept = desk.backend.parameters(model)
    shared = [key for key in body if key.startswith("transformer.")]
    assert shared
    assert all(np.array_equal(kept[key], body[key]) for key in shared)


# ---- one of several texts -----------------------------------------------------------------

PROMPT = "The dog is thirsty and goes to the river."
CHOICES = ["It drinks cold water.", "It reads a book."]


def choice(desk):
    encoded = desk.encode([PROMPT, PROMPT], CHOICES, padding=True)
    inputs = {name: value[None] for name, value in encoded.items()}  # one sample, two choices
    outputs = desk.load("XLMForMultipleChoice")(**inputs, labels=desk.tensor(np.array([0])))
    return {"logits": desk.array(outputs.logits), "loss": desk.loss(outputs)}


def test_multiple_choice(desk, agree):
    came = choice(desk)
    assert came["logits"].shape == (1, 2)
    assert came["logits"][0, 0] != came["logits"][0, 1]
    assert came["loss"] == pytest.approx(cross_entropy(came["logits"], [0]), rel=1e-5)
    agree(choice, came)


def test_each_choice_is_scored_by_itself(desk):
    came = choice(desk)["logits"]
    model = desk.load("XLMForMultipleChoice")
    for number, text in enumerate(CHOICES):
        encoded = desk.encode([PROMPT], [text])
        alone = model(**{name: value[None] for name, value in encoded.items()}).logits
        assert_close({"logits": desk.array(alone)}, {"logits": came[:, number, None]}, MODEL)


# ---- tokens into classes ------------------------------------------------------------------


def token_classes(desk):
    inputs = desk.encode("My sister lives in Paris and in Berlin", add_special_tokens=False)
    model = desk.load("XLMForTokenClassification")
    logits = desk.array(model(**inputs).logits)
    classes = logits.argmax(-1)
    found = [model.config.id2label[int(number)] for number in classes[0]]
    assert len(found) == inputs["input_ids"].shape[1]
    outputs = model(**inputs, labels=desk.tensor(classes))
    assert desk.loss(outputs) == pytest.approx(cross_entropy(logits, classes), rel=1e-5)
    other = model(**inputs, labels=desk.tensor((classes + 1) % 5))
    assert desk.loss(other) > desk.loss(outputs)
    return {"logits": logits, "loss": desk.loss(outputs)}


def test_token_classes(desk, agree):
    came = token_classes(desk)
    assert came["logits"].shape[::2] == (1, 5)
    agree(token_classes, came)


# ---- questions ----------------------------------------------------------------------------

QUESTION, STORY = "What does the dog drink?", "The dog goes to the river and drinks cold water."


def answer(desk):
    inputs = desk.encode(QUESTION, STORY)
    model = desk.load("XLMForQuestionAnsweringSimple")
    outputs = model(**inputs)
    start, end = desk.array(outputs.start_logits), desk.array(outputs.end_logits)
    first, last = int(start.argmax()), int(end.argmax())
    ids = np.asarray(desk.tokenizer(QUESTION, STORY)["input_ids"])
    assert isinstance(desk.tokenizer.decode(ids[first : last + 1].tolist()), str)
    where = {"start_positions": np.array([first]), "end_positions": np.array([3])}
    loss = desk.loss(model(**inputs, **{k: desk.tensor(v) for k, v in where.items()}))
    by_hand = (cross_entropy(start, [first]) + cross_entropy(end, [3])) / 2
    assert loss == pytest.approx(by_hand, rel=1e-5)
    return {"start": start, "end": end, "loss": loss}


def test_answers_with_one_start_and_one_end(desk, agree):
    came = answer(desk)
    length = len(desk.tokenizer(QUESTION, STORY)["input_ids"])
    assert came["start"].shape == came["end"].shape == (1, length)
    agree(answer, came)


def best_answers(desk):
    """With positions there is a loss; without, the best answers and their probabilities."""
    ids = np.asarray([desk.tokenizer.encode(GREETING, add_special_tokens=True)])
    model = desk.load("XLMForQuestionAnswering", start_n_top=3, end_n_top=2)
    where = {"start_positions": np.array([1]), "end_positions": np.array([3])}
    outputs = model(desk.tensor(ids), **{k: desk.tensor(v) for k, v in where.items()})
    found = model(desk.tensor(ids))
    names = ("start_top_index", "start_top_log_probs", "end_top_index", "end_top_log_probs")
    return {
        "loss": desk.loss(outputs),
        **{name: desk.array(found[name]) for name in (*names, "cls_logits")},
    }


def test_best_answers(desk, agree):
    came = best_answers(desk)
    assert came["start_top_index"].shape == (1, 3)
    assert came["end_top_index"].shape == (1, 6)
    assert came["cls_logits"].shape == (1,)
    agree(best_answers, came)
    # Of all starts and ends: their chances are those that the loss is made of.
    length = len(desk.tokenizer(GREETING)["input_ids"])
    model = desk.load("XLMForQuestionAnswering", start_n_top=length, end_n_top=length)
    ids = np.asarray([desk.tokenizer(GREETING)["input_ids"]])
    found = model(desk.tensor(ids))
    starts = desk.array(found.start_top_index)[0].tolist()
    ends = desk.array(found.end_top_index)[0].reshape(length, length)  # (rank, start)
    start_chance = desk.array(found.start_top_log_probs)[0][starts.index(1)]
    column = starts.index(1)
    rank = ends[:, column].tolist().index(3)
    end_chance = desk.array(found.end_top_log_probs)[0].reshape(length, length)[rank, column]
    by_hand = -(np.log(start_chance) + np.log(end_chance)) / 2
    assert came["loss"] == pytest.approx(by_hand, rel=1e-4)
