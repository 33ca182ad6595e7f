"""An example batch for every class, with the labels that its loss needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

Inputs = Mapping[str, np.ndarray]
Draw = Callable[[Any, np.random.Generator, int], dict[str, np.ndarray]]

IGNORED = -100  # the label that does not count
ROWS = 3
CHOICES = 2
# The inputs that ask for a loss; the others say what to read.
LABELS = ("labels", "start_positions", "end_positions", "is_impossible")


def example_inputs(
    config: Any, head: str, seed: int = 0, length: int = 12
) -> dict[str, np.ndarray]:
    """Return a batch that shows most mistakes: both kinds of padding, and labels to ignore.

    Args:
        config: The model's config.
        head: Its class.
        seed: Draws the ids.
        length: Tokens of the longest row.
    """
    # A beam of answers has to find enough of them in every row.
    wanted = max(length, 2 * getattr(config, "start_n_top", 0), 2 * getattr(config, "end_n_top", 0))
    if getattr(config, "uses_languages", False):
        wanted = max(wanted, -(-config.n_langs // 2))  # every language has a token
    room = getattr(config, "longest_text", config.max_position_embeddings)
    length = max(2, min(wanted, room) if room > 0 else wanted)  # -1: texts of any length
    return EXAMPLES[head](config, np.random.default_rng(seed), length)


def forward_only(inputs: Inputs) -> dict[str, np.ndarray]:
    """Return the inputs without those that ask for a loss."""
    return {name: value for name, value in inputs.items() if name not in LABELS}


def _text(
    config: Any, rng: np.random.Generator, length: int, rows: int = ROWS
) -> dict[str, np.ndarray]:
    """Rows in turn without padding, with it on the left, and on the right; mixed languages."""
    low = min(4, config.vocab_size - 1)  # the first ids are special in every family
    input_ids = rng.integers(low, config.vocab_size, (rows, length), dtype=np.int64)
    attention_mask = np.ones_like(input_ids)
    attention_mask[1::ROWS, : length // 3] = 0
    attention_mask[2::ROWS, length - length // 4 :] = 0
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    input_ids[attention_mask == 0] = pad
    text = {"input_ids": input_ids, "attention_mask": attention_mask}
    if getattr(config, "uses_languages", False):
        text[config.language_argument] = _languages(config, rng, attention_mask == 1)
    return text


def _languages(config: Any, rng: np.random.Generator, real: np.ndarray) -> np.ndarray:
    """A language for each token, mixed in every row; where there is room, each of them occurs.

    Nobody looks at what becomes of padding, so it is the tokens that are dealt out.
    """
    langs = rng.integers(0, config.n_langs, real.shape, dtype=np.int64)
    langs[real] = rng.permutation(np.arange(real.sum()) % config.n_langs)
    return langs


def _long_text(config: Any, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    """Rows that a memory stands before: padding on the left only, words of every cluster."""
    text = _text(config, rng, length)
    for value in text.values():
        value[2::ROWS] = np.roll(value[2::ROWS], length // 4, 1)
    real = text["attention_mask"] == 1
    bounds = np.array(config.cluster_bounds)
    clusters = rng.permutation(np.arange(real.sum()) % len(bounds))
    text["input_ids"][real] = rng.integers(*bounds[clusters].T)
    return text


def _beside_encoder(draw: Draw) -> Draw:
    """The same, with the states of an encoder where the model is a decoder that looks at them."""

    def drawn(config: Any, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
        text = draw(config, rng, length)
        if not (config.is_decoder and config.add_cross_attention):
            return text
        states = rng.normal(size=(ROWS, length + 2, config.hidden_size)).astype(np.float32)
        mask = np.ones(states.shape[:2], np.int64)
        mask[1, : length // 3] = 0
        mask[2, length + 2 - length // 4 :] = 0
        return {**text, "encoder_hidden_states": states, "encoder_attention_mask": mask}

    return drawn


def _labelled(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels of tokens: none at padding, and one more left out."""
    labels = np.where(mask == 1, labels, IGNORED)
    labels[0, labels.shape[1] // 2] = IGNORED
    return labels


def _tokens(
    config: Any, rng: np.random.Generator, length: int, draw: Draw = _text
) -> dict[str, np.ndarray]:
    text = draw(config, rng, length)
    return {**text, "labels": _labelled(text["attention_mask"], text["input_ids"])}


def _next_tokens(
    config: Any, rng: np.random.Generator, length: int, draw: Draw = _text
) -> dict[str, np.ndarray]:
    """Labels that are predicted from the token before, but for the first one behind padding."""
    text = _tokens(config, rng, length, draw)
    mask = text["attention_mask"]
    text["labels"][:, 1:][mask[:, 1:] > mask[:, :-1]] = IGNORED  # what padding says means nothing
    return text


def _classes_of_tokens(config: Any, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    text = _text(config, rng, length)
    classes = rng.integers(0, config.num_labels, text["input_ids"].shape)
    return {**text, "labels": _labelled(text["attention_mask"], classes)}


def _classes_of_texts(
    config: Any, rng: np.random.Generator, length: int, draw: Draw = _text
) -> dict[str, np.ndarray]:
    text = draw(config, rng, length)
    kind = config.problem_type or ("regression" if config.num_labels == 1 else None)
    if kind == "regression":
        return {**text, "labels": rng.normal(size=(ROWS, config.num_labels)).astype(np.float32)}
    if kind == "multi_label_classification":
        several = rng.integers(0, 2, (ROWS, config.num_labels))
        return {**text, "labels": several.astype(np.float32)}
    return {**text, "labels": rng.integers(0, config.num_labels, ROWS)}


def _choices(config: Any, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    text = _text(config, rng, length, ROWS * CHOICES)
    shaped = {name: value.reshape(ROWS, CHOICES, -1) for name, value in text.items()}
    return {**shaped, "labels": rng.integers(0, CHOICES, ROWS)}


def _spans(config: Any, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    text = _text(config, rng, length)
    real = [np.flatnonzero(row) for row in text["attention_mask"]]
    spans = np.array([np.sort(rng.choice(columns, 2)) for columns in real])
    return {**text, "start_positions": spans[:, 0], "end_positions": spans[:, 1]}


def _answers(config: Any, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    text = _spans(config, rng, length)
    return {
        **text,
        "cls_index": text["attention_mask"].argmax(-1),
        "is_impossible": np.arange(ROWS).astype(np.float32) % 2,
        "p_mask": 1.0 - text["attention_mask"].astype(np.float32),
    }


def _translation(config: Any, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    source, target = _text(config, rng, length), _text(config, rng, max(2, length - 3))
    # The label of a position is the token that follows it.
    labels = np.roll(target["input_ids"], -1, 1)
    labels[:, -1] = IGNORED
    return {
        **source,
        **{f"decoder_{name}": value for name, value in target.items()},
        "labels": _labelled(target["attention_mask"], labels),
    }


# One line per class; a test holds that none of the tables' classes is missing.
EXAMPLES: dict[str, Draw] = {
    "XGLMModel": _text,
    "XGLMForCausalLM": _tokens,
    "XLMModel": _text,
    "XLMWithLMHeadModel": _tokens,
    "XLMForSequenceClassification": _classes_of_texts,
    "XLMForMultipleChoice": _choices,
    "XLMForTokenClassification": _classes_of_tokens,
    "XLMForQuestionAnsweringSimple": _spans,
    "XLMForQuestionAnswering": _answers,
    "XLMEncoderDecoder": _translation,
    "XmodModel": _beside_encoder(_text),
    "XmodForCausalLM": _beside_encoder(_next_tokens),
    "XmodForMaskedLM": _beside_encoder(_tokens),
    "XmodForSequenceClassification": _classes_of_texts,
    "XmodForMultipleChoice": _choices,
    "XmodForTokenClassification": _classes_of_tokens,
    "XmodForQuestionAnswering": _spans,
    "TransfoXLModel": _long_text,
    "TransfoXLLMHeadModel": partial(_next_tokens, draw=_long_text),
    "TransfoXLForSequenceClassification": partial(_classes_of_texts, draw=_long_text),
}
