"""The demo's byte pairs for XLM, learned from its text."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from xlmfam.cli import demo_masked as masked
from xlmfam.cli.demo_masked import Sentence
from xlmfam.common.tokenizers.xlm_bpe import Pair, merge_short

# Those of the corpus that need no package of their own to be split into words, as Chinese and
# Japanese do.
CODES = {
    **{"English": "en", "German": "de", "French": "fr", "Spanish": "es", "Turkish": "tr"},
    **{"Swahili": "sw", "Russian": "ru", "Greek": "el", "Arabic": "ar", "Hindi": "hi"},
    "Korean": "ko",
}


def with_languages(lines: Sequence[str]) -> list[Sentence]:
    """Return the corpus' sentences in the languages that XLM takes here."""
    return masked.with_languages(lines, CODES)


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
