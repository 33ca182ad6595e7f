"""What transformers' pages show of Transformer-XL, done with xlmfam in every backend.

A text goes through the tokenizer into a class, and what comes out is used as readers use it: states
and memories, scores of words, text that goes on, classes. The numbers are held against another
backend, and losses against sums done here. Nearly all inputs have one shape, which Flax compiles
its operations for.
"""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS, get_backend
from comparing import assert_close, error_of
from desk import Desk, binary_cross_entropy, cross_entropy
from tiny_transfo_xl import SIZES, make_transfo_xl, make_transfo_xl_tokenizer
from tolerances import MODEL

from xlmfam import AutoTokenizer, TransfoXLTokenizer
from xlmfam.common.corpora import LMOrderedIterator
from xlmfam.conversion.runners import installed_backends

TEXTS = ["The dog sleeps in the garden.", "Good morning, how are you?"]
LENGTH, WIDTH, HEADS = 7, SIZES["d_model"], SIZES["n_head"]
LAYERS, MEMORY = SIZES["n_layer"], SIZES["mem_len"]
LM, CLASSIFIER = "TransfoXLLMHeadModel", "TransfoXLForSequenceClassification"
# What is not simply the checkpoint of its class: class and settings.
CHECKPOINTS = {"regression": (CLASSIFIER, {"num_labels": 1})}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of the words of a little text."""
    return make_transfo_xl_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def desks(tmp_path_factory, tokenizer):
    """Returns the desk of a backend."""
    made, desks = {}, {}

    def folder(checkpoint):
        if checkpoint not in made:
            head, settings = CHECKPOINTS.get(checkpoint, (checkpoint, {}))
            path = tmp_path_factory.mktemp(checkpoint)
            made[checkpoint] = make_transfo_xl(path, tokenizer, head, **settings)
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


def test_tokenizer_comes_back_from_a_folder(tokenizer, tmp_path):
    make_transfo_xl(tmp_path, tokenizer)
    for loaded in (TransfoXLTokenizer.from_pretrained(tmp_path), auto(tmp_path)):
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert list(loaded(text)) == ["input_ids"]
            assert loaded(text)["input_ids"] == ids
            assert len(ids) == LENGTH  # nothing is put around a text
            assert loaded.decode(ids) == text
        numbers = loaded.tokenize("1,000 dogs in the well-known garden")
        assert numbers == ["1", "@,@", "000", "dogs", "in", "the", "well", "@-@", "known", "garden"]
        assert loaded.convert_tokens_to_string(numbers) == "1,000 dogs in the well-known garden"
        assert loaded.convert_tokens_to_ids(["<eos>", "<unk>", "Tuesdays"]) == [0, 1, 1]


def auto(folder):
    loaded = AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is TransfoXLTokenizer
    return loaded


# ---- the base model -----------------------------------------------------------------------


def states(desk):
    """States of all layers, attention weights, and memories for the next call."""
    model = desk.load("TransfoXLModel", LM)
    flags = {"output_hidden_states": True, "output_attentions": True}
    return desk.backend.numpy(model(**desk.encode(TEXTS), **flags))


def test_states(desk, agree):
    came = states(desk)
    assert came["last_hidden_state"].shape == (2, LENGTH, WIDTH)
    assert [s.shape for s in came["hidden_states"]] == [(2, LENGTH, WIDTH)] * (LAYERS + 1)
    assert [m.shape for m in came["mems"]] == [(MEMORY, 2, WIDTH)] * LAYERS
    keys = MEMORY + LENGTH
    assert [a.shape for a in came["attentions"]] == [(2, HEADS, LENGTH, keys)] * LAYERS
    # What is kept of a layer is what it has read: zeros before the text, and the text.
    for memory, read in zip(came["mems"], came["hidden_states"], strict=False):
        assert not memory[: MEMORY - LENGTH].any()
        assert np.array_equal(memory[MEMORY - LENGTH :], read.swapaxes(0, 1))
    agree(states, came)


def test_the_length_of_memories(desk):
    model = desk.load_anew("TransfoXLModel", LM)
    zeros = model.init_mems(2)
    inputs = desk.encode(TEXTS)
    by_default = desk.array(model(**inputs).last_hidden_state)
    assert np.array_equal(desk.array(model(**inputs, mems=zeros).last_hidden_state), by_default)
    model.reset_memory_length(4)
    assert [desk.array(m).shape for m in model(**inputs).mems] == [(4, 2, WIDTH)] * LAYERS


# ---- the language model -------------------------------------------------------------------


def scores(desk):
    """Logarithms of the chances of every word at every place."""
    output = desk.load(LM)(**desk.encode(TEXTS))
    assert output.loss is None
    return {"scores": desk.array(output.prediction_scores)}


def test_scores_are_logarithms_of_chances(desk, agree):
    came = scores(desk)
    assert came["scores"].shape == (2, LENGTH, len(desk.tokenizer))
    np.testing.assert_allclose(np.exp(np.float64(came["scores"])).sum(-1), 1, rtol=1e-5)
    agree(scores, came)


def losses(desk):
    """Each word is to predict the next one; the model shifts the labels."""
    ids = desk.encode(TEXTS)["input_ids"]
    output = desk.load(LM)(input_ids=ids, labels=ids)
    return {"losses": desk.array(output.losses), "loss": desk.loss(output)}


def test_losses(desk, agree):
    came = losses(desk)
    ids = desk.array(desk.encode(TEXTS)["input_ids"])[:, 1:, None]
    by_hand = -np.take_along_axis(scores(desk)["scores"][:, :-1], ids, -1)[..., 0]
    assert error_of(came["losses"], by_hand) < MODEL
    assert came["loss"] == pytest.approx(by_hand.mean(), rel=1e-5)
    agree(losses, came)


MORE = ["The cat reads in the house.", "The child, how are you?"]


def segments(desk):
    """A longer text in two calls; the second reads on from the memories of the first."""
    model = desk.load(LM)
    first = model(**desk.encode(TEXTS))
    second = model(**desk.encode(MORE), mems=first.mems)
    both = [desk.array(output.prediction_scores) for output in (first, second)]
    return {"scores": np.concatenate(both, 1)}


def test_memories_are_the_text_before(desk, desks, agree):
    came = segments(desk)
    one = desks(installed_backends()[0])  # Flax would compile every operation for its length
    both = [one.array(one.encode(texts)["input_ids"]) for texts in (TEXTS, MORE)]
    whole = one.load(LM)(one.tensor(np.concatenate(both, 1))).prediction_scores
    assert error_of(came["scores"], one.array(whole)) < MODEL
    alone = desk.load(LM)(**desk.encode(MORE)).prediction_scores
    assert error_of(desk.array(alone), came["scores"][:, LENGTH:]) > 0.01
    agree(segments, came)


# ---- text that goes on --------------------------------------------------------------------

PROMPTS = ["The dog", "Good morning, how"]
FROM_THE_RIGHT = {"padding": True, "padding_side": "left", "return_attention_mask": True}
NEW = 3


def continued(desk):
    """Two prompts of unequal length, in one batch."""
    prompts = desk.encode(PROMPTS, **FROM_THE_RIGHT)
    ids = desk.load(LM).generate(**prompts, max_new_tokens=NEW, eos_token_id=None)
    return {"ids": desk.array(ids)}


def test_generation_takes_the_best_word_each_time(desk, agree):
    ids = continued(desk)["ids"]
    prompts = desk.tokenizer(PROMPTS, **FROM_THE_RIGHT, return_tensors="np")
    start = prompts["input_ids"].shape[1]
    assert ids.shape == (2, start + NEW) == (2, LENGTH)
    assert ids[:, :start].tolist() == prompts["input_ids"].tolist()
    mask = np.pad(prompts["attention_mask"], ((0, 0), (0, NEW)), constant_values=1)
    assert not mask.all()
    read = {"input_ids": desk.tensor(ids), "attention_mask": desk.tensor(mask)}
    best = desk.array(desk.load(LM)(**read).prediction_scores).argmax(-1)
    assert ids[:, start:].tolist() == best[:, start - 1 : -1].tolist()
    for row, prompt in zip(ids[:, start:], PROMPTS, strict=True):
        text = desk.tokenizer.decode([*desk.tokenizer(prompt)["input_ids"], *row.tolist()])
        assert text.startswith(prompt)
    agree(continued, {"ids": ids})


# ---- texts into classes -------------------------------------------------------------------

UNEQUAL = ["The dog sleeps in the garden.", "Good morning."]


def texts_of(desk, labels=None):
    """Return two texts, the second padded on the right with the config's padding id."""
    inputs = desk.encode(UNEQUAL, padding=True)
    return inputs if labels is None else {**inputs, "labels": desk.tensor(labels)}


def one_class(desk):
    outputs = desk.load(CLASSIFIER)(**texts_of(desk, [1, 0]))
    return {"logits": desk.array(outputs.logits), "loss": desk.loss(outputs)}


def test_one_class(desk, agree):
    came = one_class(desk)
    assert came["logits"].shape == (2, 2)
    assert came["loss"] == pytest.approx(cross_entropy(came["logits"], [1, 0]), rel=1e-5)
    names = desk.load(CLASSIFIER).config.id2label
    assert {names[int(number)] for number in came["logits"].argmax(-1)} <= {"LABEL_0", "LABEL_1"}
    agree(one_class, came)


def test_padding_behind_a_text_is_not_read(desk):
    ids = desk.array(texts_of(desk)["input_ids"]).copy()
    (places,) = np.nonzero(ids[1] == desk.tokenizer.pad_token_id)
    assert len(places) > 2
    ids[1, places[1:]] = 5
    logits = desk.array(desk.load(CLASSIFIER)(desk.tensor(ids)).logits)
    assert error_of(logits, one_class(desk)["logits"]) < MODEL
    ids[1, places[0]] = 5
    logits = desk.array(desk.load(CLASSIFIER)(desk.tensor(ids)).logits)
    assert error_of(logits[1], one_class(desk)["logits"][1]) > 0.01


def several_classes(desk):
    model = desk.load(CLASSIFIER, problem_type="multi_label_classification")
    logits = desk.array(model(**texts_of(desk)).logits)
    likely = np.float32(1 / (1 + np.exp(-logits)) > 0.5)
    outputs = model(**texts_of(desk, likely))
    assert desk.loss(outputs) == pytest.approx(binary_cross_entropy(logits, likely), rel=1e-5)
    assert desk.loss(model(**texts_of(desk, 1 - likely))) > desk.loss(outputs)
    return {"logits": logits, "loss": desk.loss(outputs), "likely": likely}


def test_several_classes(desk, agree):
    agree(several_classes, several_classes(desk))


def a_number(desk):
    """One label: the text is given a number, and the loss is the squared error."""
    wanted = np.float32([0.25, -1.5])
    outputs = desk.load(CLASSIFIER, "regression")(**texts_of(desk, wanted))
    logits = desk.array(outputs.logits)
    assert logits.shape == (2, 1)
    assert desk.loss(outputs) == pytest.approx(np.mean((logits[:, 0] - wanted) ** 2), rel=1e-5)
    return {"logits": logits, "loss": desk.loss(outputs)}


def test_regression(desk, agree):
    agree(a_number, a_number(desk))


def test_another_number_of_labels(desk):
    """A language model becomes a classifier whose head is new."""
    model = desk.load(CLASSIFIER, LM, num_labels=7)
    assert len(model.config.id2label) == 7
    outputs = model(**texts_of(desk, [4, 0]))
    logits = desk.array(outputs.logits)
    assert logits.shape == (2, 7)
    assert desk.loss(outputs) == pytest.approx(cross_entropy(logits, [4, 0]), rel=1e-4)
    body, kept = (desk.backend.parameters(one) for one in (desk.load(LM), model))
    shared = [key for key in body if key.startswith("transformer.")]
    assert shared
    assert all(np.array_equal(kept[key], body[key]) for key in shared)


# ---- learning from a long text ------------------------------------------------------------

RATE = 0.1


def learn_pt(model, ids, mems):
    import torch

    ids = torch.from_numpy(ids)
    output = model(ids, mems=mems, labels=ids)
    output.loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:  # a cluster may have no word in a segment
                parameter -= RATE * parameter.grad
    model.zero_grad()
    return output.loss.item(), output.mems


def learn_tf(model, ids, mems):
    import keras
    import tensorflow as tf

    with tf.GradientTape() as tape:
        output = model(tf.constant(ids), mems=mems, labels=tf.constant(ids))
        loss = tf.reduce_mean(output.loss)
    variables = model.trainable_variables
    rule = keras.optimizers.SGD(RATE)
    rule.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return float(loss), output.mems


def learn_flax(model, ids, mems):
    import jax

    def loss_of(params):
        output = model(ids, mems=mems, labels=ids, params=params)
        return output.loss, output.mems

    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, mems), slopes = step(model.params)
    model.params = jax.tree.map(lambda p, slope: p - RATE * slope, model.params, slopes)
    return float(loss), mems


LEARN = {"pt": learn_pt, "tf": learn_tf, "flax": learn_flax}


def taught(desk):
    """Segments of a text, each with the memories of the one before."""
    text = desk.tokenizer.convert_tokens_to_ids(desk.tokenizer.tokenize(" ".join(TEXTS + MORE)))
    assert len(text) == 4 * LENGTH
    model, mems = desk.load_anew(LM), desk.load(LM).init_mems(2)
    seen = []
    for ids, _, length in LMOrderedIterator(text + text[:2], 2, LENGTH):
        assert ids.shape == (2, length) == (2, LENGTH)
        loss, mems = LEARN[desk.backend.name](model, ids, mems)
        seen.append(loss)
    return {"losses": np.array(seen), "parameters": desk.backend.parameters(model)}


def test_learning_with_memories(desk, agree):
    came = taught(desk)
    assert came["losses"].shape == (2,)
    before = desk.backend.parameters(desk.load(LM))
    assert not [name for name, value in came["parameters"].items() if (value == before[name]).all()]
    agree(taught, came)
