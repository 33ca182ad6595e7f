"""The demo's text: the corpus, a tokenizer trained on it, and batches and prompts made of both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.errors import XlmfamError

# The corpus lists every sentence in these languages, always in this order.
LANGUAGES = (
    *("English", "German", "French", "Spanish", "Turkish", "Swahili"),
    *("Russian", "Greek", "Arabic", "Hindi", "Chinese", "Japanese", "Korean"),
)
# Those whose continuations the report shows: one for each script.
SHOWN = ("English", "Russian", "Greek", "Arabic", "Hindi", "Chinese", "Japanese", "Korean")
IGNORED = -100  # the label that does not count


@dataclass(frozen=True)
class Prompt:
    """The first half of a sentence, and the whole of it."""

    language: str
    text: str
    sentence: str


def read_corpus(groups: int | None = None) -> list[str]:
    """Return the sentences, thirteen for each group; the first ``groups`` only where given."""
    file = resources.files("xlmfam.cli").joinpath("demo_data/corpus.txt")
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines if groups is None else lines[: groups * len(LANGUAGES)]


def train_tokenizer(
    sentences: Sequence[str],
    folder: Path,
    pieces: int,
    kind: str = "XGLMTokenizer",
    model_type: str = "unigram",
) -> Any:
    """Train a sentencepiece model and make a tokenizer of it, saved in ``folder``.

    Args:
        sentences: The text.
        folder: Where the tokenizer is saved.
        pieces: Most pieces of the vocabulary.
        kind: Name of the tokenizer's class.
        model_type: How sentencepiece finds pieces: ``unigram`` or ``bpe``.
    """
    import sentencepiece

    import xlmfam

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=model_type,
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,  # the same pieces in every run
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    tokenizer = getattr(xlmfam, kind)(path)
    tokenizer.save_pretrained(folder)
    return tokenizer


def training_rows(tokenizer: Any, sentences: Sequence[str]) -> list[list[int]]:
    """Return the ids of every sentence: ``</s> sentence </s>``."""
    end = tokenizer.eos_token_id
    return [[*ids, end] for ids in tokenizer(list(sentences))["input_ids"]]


def padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, np.ndarray]:
    """Return rows of ids as arrays, padded on the right, with labels."""
    length = max(map(len, rows))
    input_ids = np.full((len(rows), length), pad, np.int64)
    attention_mask = np.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    labels = np.where(attention_mask == 1, input_ids, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def first_half(tokenizer: Any, sentence: str) -> str | None:
    """Return about half of a sentence, cut where its tokens are those of the whole.

    A cut elsewhere may split a piece, and the model would see a beginning it never met. Where
    words are set apart, the cut is between words if it can be. None where there is no such cut.
    """
    ids = tokenizer(sentence)["input_ids"]
    middle = (len(ids) + 1) // 2
    cuts = sorted(range(2, len(ids) - 1), key=lambda cut: (abs(cut - middle), -cut))
    texts = [tokenizer.decode(ids[:cut], skip_special_tokens=True) for cut in cuts]
    fitting = [
        text
        for cut, text in zip(cuts, texts, strict=True)
        if sentence.startswith(text) and tokenizer(text)["input_ids"] == ids[:cut]
    ]
    between_words = [text for text in fitting if sentence[len(text) : len(text) + 1] == " "]
    return next(iter([*between_words, *fitting]), None)


def shown_prompts(
    tokenizer: Any,
    sentences: Sequence[str],
    group: int,
    languages: Sequence[str] = LANGUAGES,
    shown: Sequence[str] = SHOWN,
) -> list[Prompt]:
    """Return prompts from the sentences of one group.

    Args:
        tokenizer: Says where a sentence may be cut.
        sentences: One in each language, again and again.
        group: Which of the groups.
        languages: In this order.
        shown: Those to have a prompt in; by default one for each script.
    """
    found = []
    for language in shown:
        sentence = sentences[group * len(languages) + languages.index(language)]
        text = first_half(tokenizer, sentence)
        if text is not None:
            found.append(Prompt(language, text, sentence))
    if not found:
        raise XlmfamError("no sentence of the corpus can be cut in two")
    return found


def sampled_prompts(
    tokenizer: Any,
    sentences: Sequence[str],
    count: int,
    seed: int,
    languages: Sequence[str] = LANGUAGES,
) -> list[Prompt]:
    """Return the first halves of ``count`` sentences drawn from the corpus.

    Only halves that one sentence alone begins with: the others have more than one right end.
    """
    order = np.random.default_rng(seed).permutation(len(sentences))
    found: list[Prompt] = []
    for index in order:
        text = first_half(tokenizer, sentences[index])
        if text is not None and sum(other.startswith(text) for other in sentences) == 1:
            found.append(Prompt(languages[index % len(languages)], text, sentences[index]))
        if len(found) == count:
            break
    return found
