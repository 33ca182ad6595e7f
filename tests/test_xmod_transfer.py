"""Zero-shot transfer in every backend: learned in one language, right in another by its adapters.

The words are false friends. One stands in a square: in the first language it belongs to the topic
of its row, in the second to that of its column, and every text has a topic in both. So nothing but
the adapters can tell what a text is about. A model learns both languages, by naming the topics of
texts at their beginning; then a classifier learns to group the topics in one language alone.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from backends import BACKENDS, get_backend

from xlmfam import XmodConfig

SIDE = 4  # of the square; rows and columns are topics
FIRST_WORD = 5
FIRST, SECOND = "en_XX", "de_DE"
CONFIG = {
    "vocab_size": FIRST_WORD + SIDE * SIDE,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 14,
    "type_vocab_size": 1,
    "adapter_reduction_factor": 0.5,  # all that the languages know is in the adapters
    "languages": [FIRST, SECOND],
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.15,
}


def make_texts(count, seed):
    """Return texts (count, 9) and their topics in both languages, (2, count).

    Seven words: where row and column meet, and three more of each. So no other row or column has
    as many.
    """
    rng = np.random.default_rng(seed)
    row, column = rng.integers(0, SIDE, (2, count, 1))
    ones = np.ones((1, 3), int)
    rows = np.concatenate([row, row * ones, rng.integers(0, SIDE, (count, 3))], 1)
    columns = np.concatenate([column, rng.integers(0, SIDE, (count, 3)), column * ones], 1)
    words = rng.permuted(FIRST_WORD + SIDE * rows + columns, axis=1)
    ids = np.pad(words, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 2)))
    return ids, np.stack([row[:, 0], column[:, 0]])


def groups(topics):
    """Return the class of each topic."""
    return topics // 2


# ---- learning, as is usual in each framework ------------------------------------------------


def learn_pt(model, data, steps, rule, rate, labels):
    import torch

    data = {name: torch.from_numpy(value) for name, value in data.items()}
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = getattr(torch.optim, rule)(learned, lr=rate)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        model(**data).loss.backward()
        optimiser.step()
    model.eval()


def learn_tf(model, data, steps, rule, rate, labels):
    import keras
    import tensorflow as tf

    model.compile(optimizer=getattr(keras.optimizers, rule)(rate), jit_compile=False)
    model.fit(tf.data.Dataset.from_tensors(data).repeat(steps), shuffle=False, verbose=0)


def learn_flax(model, data, steps, rule, rate, labels):
    import jax
    import optax

    learned = getattr(optax, rule.lower())(rate)
    kinds = {"trainable": learned, "frozen": optax.set_to_zero()}
    everything = jax.tree.map(lambda _: "trainable", model.params)
    optimiser = optax.multi_transform(kinds, labels or everything)

    @jax.jit
    def step(params, state):
        slopes = jax.grad(lambda params: model(**data, params=params).loss)(params)
        updates, state = optimiser.update(slopes, state, params)
        return optax.apply_updates(params, updates), state

    params, state = model.params, optimiser.init(model.params)
    for _ in range(steps):
        params, state = step(params, state)
    model.params = params


LEARN = {"pt": learn_pt, "tf": learn_tf, "flax": learn_flax}


def seed(backend):
    """Let initial values be the same in every run; Flax's always are."""
    if backend.name == "pt":
        backend.torch.manual_seed(0)
    if backend.name == "tf":
        backend.keras.utils.set_random_seed(0)


# ---- the two steps --------------------------------------------------------------------------


def learn_languages(backend):
    """Return a model that names the topic of a text in either language, at its beginning."""
    config = XmodConfig(**CONFIG, num_labels=SIDE)
    model = backend.build("XmodForTokenClassification", config)
    ids, topics = make_texts(192, 1)
    labels = np.full((2, *ids.shape), -100)
    labels[:, :, 0] = topics
    data = {
        "input_ids": np.tile(ids, (2, 1)),
        "lang_ids": np.repeat([0, 1], len(ids)),
        "labels": np.concatenate(labels),
    }
    LEARN[backend.name](model, data, 60, "AdamW", 1e-2, None)
    return model


def learn_classes(backend, folder):
    """Return a classifier of texts that has learned in the first language."""
    model = backend.load("XmodForSequenceClassification", folder, num_labels=2)
    model.set_default_language(FIRST)
    frozen = model.freeze_embeddings_and_language_adapters()
    ids, topics = make_texts(192, 2)
    data = {"input_ids": ids, "labels": groups(topics[0])}
    LEARN[backend.name](model, data, 20, "SGD", 0.1, frozen)
    return model


@pytest.fixture(scope="module", params=BACKENDS)
def tuned(request, tmp_path_factory):
    """The classifier, and what it came from."""
    backend = get_backend(request.param)
    seed(backend)
    languages = learn_languages(backend)
    folder = backend.save(languages, tmp_path_factory.mktemp("languages"))
    classes = learn_classes(backend, folder)
    return SimpleNamespace(backend=backend, languages=languages, classes=classes)


def classify(backend, model, ids):
    """Return the class of each text."""
    if backend.name == "tf":  # compiled, unlike a call
        return model.predict(ids, batch_size=len(ids), verbose=0).logits.argmax(-1)
    return backend.call(model, {"input_ids": ids})["logits"].argmax(-1)


def share_right(tuned, language, meant):
    """Return the share of new texts whose class is right.

    Args:
        tuned: The classifier.
        language: Whose adapters are used.
        meant: Number of the language that the texts are in.
    """
    ids, topics = make_texts(400, 3)
    tuned.classes.set_default_language(language)
    found = classify(tuned.backend, tuned.classes, ids)
    return (found == groups(topics[meant])).mean()


def test_both_languages_were_learned(tuned):
    ids, topics = make_texts(400, 3)
    for language, wanted in zip((FIRST, SECOND), topics, strict=True):
        output = tuned.backend.call(tuned.languages, {"input_ids": ids}, lang_ids=language)
        assert (output["logits"][:, 0].argmax(-1) == wanted).mean() > 0.9


def test_what_was_learned_serves_the_other_language(tuned):
    assert share_right(tuned, FIRST, 0) > 0.9
    assert share_right(tuned, SECOND, 1) > 0.9


def test_it_is_the_adapters_that_make_the_difference(tuned):
    """With those of the other language texts are misread: half of them are right by chance."""
    assert 0.4 < share_right(tuned, FIRST, 1) < 0.6
    assert 0.4 < share_right(tuned, SECOND, 0) < 0.6


def test_embeddings_and_adapters_stayed(tuned):
    before = tuned.backend.parameters(tuned.languages)
    after = tuned.backend.parameters(tuned.classes)
    for name in set(before) & set(after):
        frozen = "embeddings" in name or "adapter_modules" in name
        if ".key.bias" not in name:  # its gradient is zero but for rounding
            assert np.array_equal(before[name], after[name]) == frozen, name
