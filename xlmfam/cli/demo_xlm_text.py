"""The demo's text for XLM: byte pairs trained on it, batches and riddles with hidden words."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.cli.demo_text import IGNORED, LANGUAGES, padded
from xlmfam.common.tokenizers.xlm_bpe import Pair, merge_short

# Those of the corpus that need no package of their own to be split into words, as Chinese and
# Japanese do.
CODES = {
    **{"English": "en", "German": "de", "French": "fr", "Spanish": "es", "Turkish": "tr"},
    **{"Swahili": "sw", "Russian": "ru", "Greek": "el", "Arabic": "ar", "Hindi": "hi"},
    "Korean": "ko",
}
NAMES = {code: name for name, code in CODES.items()}
_MARKS = ".,;:!?¿¡؟،।«»\"'()"


@dataclass(frozen=True)
class Sentence:
    """A sentence and the code of its language."""

    lang: str
    text: str


@dataclass(frozen=True)
class Riddle:
    """A sentence with one word hidden.

    Attributes:
        lang: Code of its language.
        text: The sentence with the mask token in it.
        word: What is hidden.
        ids: Ids of the whole sentence.
        place: Where the hidden word stands in ``ids``.
    """

    lang: str
    text: str
    word: str
    ids: tuple[int, ...]
    place: int

    def filled(self, token: int) -> tuple[int, ...]:
        """Return the ids with a guess in the place of the word."""
        return (*self.ids[: self.place], token, *self.ids[self.place + 1 :])


def with_languages(lines: Sequence[str]) -> list[Sentence]:
    """Return the corpus' sentences in the languages that XLM takes here."""
    named = ((LANGUAGES[index % len(LANGUAGES)], line) for index, line in enumerate(lines))
    return [Sentence(CODES[name], line) for name, line in named if name in CODES]


def train_tokenizer(sentences: Sequence[Sentence], folder: Path, pieces: int) -> Any:
    """Learn byte pairs and make an `XLMTokenizer` of them, saved in ``folder``.

    It is cased: lower case without accents would take the vowels from Hindi.

    Args:
        sentences: The text.
        folder: Where the tokenizer is saved.
        pieces: Most pieces of the vocabulary.
    """
    from xlmfam.common.tokenizers.xlm_bpe import END
    from xlmfam.common.tokenizers.xlm_originals import SPECIAL_WORDS

    bare = _xlm_tokenizer(folder, SPECIAL_WORDS, [])  # knows words, and no pieces but letters
    words: Counter[tuple[str, ...]] = Counter()
    for sentence in sentences:
        letters = bare.tokenize(sentence.text, lang=sentence.lang)
        ends = [number + 1 for number, letter in enumerate(letters) if letter.endswith(END)]
        words.update(tuple(letters[a:b]) for a, b in pairwise([0, *ends]))
    alphabet = sorted({letter for word in words for letter in word})
    merges = learn_merges(words, pieces - len(SPECIAL_WORDS) - len(alphabet))
    vocabulary = [*SPECIAL_WORDS, *alphabet, *(first + second for first, second in merges)]
    tokenizer = _xlm_tokenizer(folder, list(dict.fromkeys(vocabulary)), merges)
    tokenizer.save_pretrained(folder)
    return tokenizer


def learn_merges(words: Mapping[tuple[str, ...], int], most: int) -> list[Pair]:
    """Return pairs of symbols to merge, the most frequent first (Sennrich et al. 2016).

    Args:
        words: How often each word occurs, by its letters.
        most: Most merges; pairs that occur once are never merged.
    """
    spelt, counts = [list(word) for word in words], list(words.values())
    pairs: Counter[Pair] = Counter()
    where: dict[Pair, set[int]] = defaultdict(set)  # words that a pair stands in, or once stood in

    def count(number: int, sign: int) -> None:
        for pair in pairwise(spelt[number]):
            pairs[pair] += sign * counts[number]
            where[pair].add(number)

    for number in range(len(spelt)):
        count(number, 1)
    merges: list[Pair] = []
    while len(merges) < most:
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        for number in where.pop(best):
            count(number, -1)
            spelt[number] = merge_short(spelt[number], {best: 0})
            count(number, 1)
        pairs = Counter({pair: often for pair, often in pairs.items() if often > 1})
    return merges


def _xlm_tokenizer(folder: Path, vocabulary: Sequence[str], merges: Sequence[Pair]) -> Any:
    """Write the vocabulary and return the tokenizer of it."""
    from xlmfam import XLMTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocab, rules = folder / "vocab.json", folder / "merges.txt"
    numbers = {token: number for number, token in enumerate(vocabulary)}
    vocab.write_text(json.dumps(numbers), encoding="utf-8")
    rules.write_text("".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    lang2id = {code: number for number, code in enumerate(CODES.values())}
    return XLMTokenizer(vocab, rules, lang2id=lang2id, do_lowercase_and_remove_accent=False)


def training_rows(tokenizer: Any, sentences: Sequence[Sentence]) -> list[list[int]]:
    """Return the ids of every sentence: ``<s> sentence </s>``."""
    langs = [sentence.lang for sentence in sentences]
    return tokenizer([sentence.text for sentence in sentences], lang=langs)["input_ids"]


def hidden(
    rows: Sequence[Sequence[int]], langs: Sequence[int], tokenizer: Any, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return a padded batch with some tokens hidden, and labels for these alone.

    How many differs from row to row, up to all of them: then the language is all that is known.

    Args:
        rows: Ids of the sentences.
        langs: Id of each one's language.
        tokenizer: Knows the mask token.
        rng: Draws what is hidden.
    """
    batch = padded(rows, tokenizer.pad_token_id)
    ids = batch["input_ids"]
    share = rng.choice([0.3, 0.6, 1.0], (len(rows), 1), p=[0.75, 0.2, 0.05])
    chosen = (rng.random(ids.shape) < share) & (ids >= len(tokenizer.all_special_ids))
    batch["labels"] = np.where(chosen, ids, IGNORED)
    batch["input_ids"] = np.where(chosen, tokenizer.mask_token_id, ids)
    batch["langs"] = np.repeat(np.asarray(langs)[:, None], ids.shape[1], axis=1)
    return batch


def riddles(tokenizer: Any, sentences: Sequence[Sentence], count: int, seed: int) -> list[Riddle]:
    """Return ``count`` sentences drawn from the text, each with one word hidden."""
    rng = np.random.default_rng(seed)
    found: list[Riddle] = []
    for index in rng.permutation(len(sentences)):
        order = rng.permutation(len(sentences[index].text.split()))
        made = riddle_of(tokenizer, sentences[index], order.tolist())
        found += [made] if made else []
        if len(found) == count:
            break
    return found


def shown_riddles(tokenizer: Any, sentences: Sequence[Sentence], group: int) -> list[Riddle]:
    """Return one riddle in each language, made of the sentences of one group, near their ends."""
    count = len(CODES)
    chosen = sentences[group * count : (group + 1) * count]
    made = (riddle_of(tokenizer, s, range(len(s.text.split()))[::-1]) for s in chosen)
    return [riddle for riddle in made if riddle]


def riddle_of(tokenizer: Any, sentence: Sentence, order: Sequence[int]) -> Riddle | None:
    """Hide one word of a sentence: the first of ``order`` that is a single token, if any is."""
    whole = tokenizer(sentence.text, lang=sentence.lang)["input_ids"]
    words = sentence.text.split()
    for index in order:
        word = words[index].strip(_MARKS)
        masked = words[index].replace(word, tokenizer.mask_token) if word else ""
        text = " ".join([*words[:index], masked, *words[index + 1 :]])
        ids = tokenizer(text, lang=sentence.lang)["input_ids"]
        place = ids.index(tokenizer.mask_token_id) if tokenizer.mask_token_id in ids else -1
        if place >= 0 and [*ids[:place], whole[place], *ids[place + 1 :]] == whole:
            return Riddle(sentence.lang, text, word, tuple(whole), place)
    return None
