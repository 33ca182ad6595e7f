"""Dictionary and BPE codes of facebookresearch/XLM, as files of a tokenizer, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.tokenizers.xlm_bpe import (
    END,
    BytePairs,
    Pair,
    lines_of_merges,
    ranks_of,
    read_merges,
)
from xlmfam.common.tokenizers.xlm_originals import (
    SPECIAL_WORDS,
    read_original_words,
    vocabulary_of_words,
)
from xlmfam.common.tokenizers.xlm_text import lower_without_accents

VOCABULARY, MERGES, SETTINGS = "vocab.json", "merges.txt", "tokenizer_config.json"
CODES, WORDS = "codes", "vocab"
_CONTINUES = "@@"
_WEIGHTS = (".pth", ".pt", ".bin")
# How many words are looked at to find out what the dictionary is like.
_SAMPLE = 500
# Of a dictionary in lower case next to nothing has capitals; of a cased one a good part.
_CASED = 0.01
# Codes of the same model split nearly none of the dictionary's own words.
_FITS = 0.5


def words_of(value: Mapping[str, Any], rows: int, path: Path, notes: list[str]) -> list[str] | None:
    """Return the words of a checkpoint in the order of their ids.

    Args:
        value: What the checkpoint holds.
        rows: Of the embedding.
        path: The checkpoint; a ``vocab`` file beside it serves where it has no dictionary.
        notes: Takes what the user should know.

    Raises:
        CheckpointError: The dictionary is damaged, or of another model.
    """
    numbers = value.get("dico_word2id")
    if numbers is None:
        return _words_beside(path, rows, notes)
    if not isinstance(numbers, Mapping) or any(type(n) is not int for n in numbers.values()):
        raise CheckpointError(f"{path}: damaged: dico_word2id gives no numbers to words")
    words = sorted(numbers, key=lambda word: numbers[word])
    if len(words) != rows or [numbers[word] for word in words] != list(range(rows)):
        raise CheckpointError(
            f"{path}: dico_word2id has {len(words)} words and must number the {rows} rows of the "
            "embedding, each once"
        )
    _require_special(words, path)
    return words


def _words_beside(path: Path, rows: int, notes: list[str]) -> list[str] | None:
    found = _beside(path.parent, WORDS)
    if len(found) != 1:
        notes.append(
            f"no tokenizer: the checkpoint has no dictionary (dico_word2id), and {len(found)} "
            "vocab files lie beside it"
        )
        return None
    words = read_original_words(found[0])
    if len(words) < rows:
        raise CheckpointError(f"{found[0]}: has {len(words)} words; the embedding has {rows} rows")
    return words[:rows]  # the commonest first, of which a model may know a part only


def _require_special(words: Sequence[str], path: Path) -> None:
    if tuple(words[: len(SPECIAL_WORDS)]) != SPECIAL_WORDS:
        raise CheckpointError(
            f"{path}: the dictionary must begin with {', '.join(SPECIAL_WORDS)}; it begins with "
            f"{', '.join(words[: len(SPECIAL_WORDS)])[:200]}"
        )


def _beside(folder: Path, kind: str) -> list[Path]:
    """Files of a kind: ``codes``, ``codes_xnli_15``, ``wiki.codes``."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if (entry.name.startswith(kind) or entry.suffix == f".{kind}")
        and entry.suffix not in (*_WEIGHTS, ".json")
        and entry.is_file()
    )


def tokenizer_of(
    words: Sequence[str] | None, config: XLMConfig, folder: Path, notes: list[str]
) -> dict[str, bytes]:
    """Return the files of a tokenizer that gives the ids of the original's scripts.

    Args:
        words: In the order of ids; without them there is no tokenizer.
        config: Has the languages.
        folder: Where the BPE codes are looked for.
        notes: Takes what the user should know.

    Raises:
        CheckpointError: A file of codes is damaged, or words are no text.
    """
    if words is None:
        return {}
    cased = _is_cased(words)
    notes.append(
        f"the dictionary is {'cased' if cased else 'in lower case without accents'}, so the "
        f"tokenizer has do_lowercase_and_remove_accent={not cased}"
    )
    notes.append("texts begin and end with </s>, as the original has it")
    settings: dict[str, Any] = {
        "tokenizer_class": "XLMTokenizer",
        "do_lowercase_and_remove_accent": not cased,
        "original_steps": True,
        "bos_token": "</s>",
        "model_max_length": config.max_position_embeddings,
    }
    if config.lang2id:
        settings |= {"lang2id": config.lang2id, "id2lang": config.id2lang}
    files = {VOCABULARY: _json(vocabulary_of_words(words)), SETTINGS: _json(settings)}
    ranks = _codes(words, folder, notes)
    if ranks is not None:
        files[MERGES] = _encoded("".join(lines_of_merges(ranks)))
    return files


def _json(content: Any) -> bytes:
    return _encoded(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError("the dictionary holds words that are no text") from error


def _is_cased(words: Sequence[str]) -> bool:
    """Whether words are not what they would be in lower case without accents."""
    own = [word.removesuffix(_CONTINUES) for word in words[len(SPECIAL_WORDS) :]]
    changed = sum(lower_without_accents(word) != word for word in own)
    return changed > _CASED * len(own)


def _codes(words: Sequence[str], folder: Path, notes: list[str]) -> dict[Pair, int] | None:
    """Return the merges that lie beside a checkpoint; of several those that fit its words."""
    found = _beside(folder, CODES)
    if not found:
        notes.append(
            "no merges.txt, so the tokenizer is not complete: put the model's BPE codes (a file "
            "whose name begins with codes) beside the checkpoint and convert again"
        )
        return None
    ranks = {path: read_merges(path) for path in found}
    fits = {path: _fit(ranks[path], words) for path in found}
    best = max(found, key=lambda path: fits[path])
    if fits[best] < _FITS:
        notes.append(f"{best.name} splits most of the dictionary's words: is it another model's?")
    if len(found) > 1:
        others = ", ".join(path.name for path in found if path != best)
        notes.append(f"merges.txt is made of {best.name}, which fits the words best, not {others}")
    return ranks[best]


def _fit(ranks: dict[Pair, int], words: Sequence[str]) -> float:
    """Share of the words that the merges leave whole, of those that have to be merged."""
    own = [word for word in words[len(SPECIAL_WORDS) :] if not word.endswith(_CONTINUES)]
    own = [word for word in own if len(word) > 1]
    some = own[:: max(1, len(own) // _SAMPLE)]
    pairs = BytePairs(ranks)
    whole = sum(len(pairs.split(word)) == 1 for word in some)
    return whole / len(some) if some else 1.0


# ---- and back -----------------------------------------------------------------------------------


def words_of_vocabulary(content: bytes, rows: int) -> list[str]:
    """Return the original's words, in the order of their ids, of a ``vocab.json``.

    Args:
        content: The file.
        rows: Of the embedding; what has no word gets one that no text has.

    Raises:
        CheckpointError: The original cannot have such a dictionary.
    """
    try:
        vocabulary = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{VOCABULARY} is no JSON: {error}") from error
    if not isinstance(vocabulary, dict) or any(type(n) is not int for n in vocabulary.values()):
        raise CheckpointError(f"{VOCABULARY} must give an id to every token")
    tokens = {number: token for token, number in vocabulary.items() if number < rows}
    words = [_word(tokens.get(number), number) for number in range(rows)]
    _require_special(words, Path(VOCABULARY))
    if len(set(words)) != len(words) or len(tokens) != sum(n < rows for n in vocabulary.values()):
        raise CheckpointError(f"{VOCABULARY} has tokens that are one word in the original")
    # Its files have a word and a number in a line, with a space between them.
    odd = next((word for word in words if word.split() != [word] or "\u2028" in word), None)
    if odd is not None:
        raise CheckpointError(f"{VOCABULARY} has the word {odd!r}: the original has no spaces")
    return words


def unnamed_words(rows: int) -> list[str]:
    """Return a dictionary for a checkpoint without a tokenizer."""
    special = SPECIAL_WORDS[:rows]
    return [*special, *(_word(None, number) for number in range(len(special), rows))]


def _word(token: str | None, number: int) -> str:
    if token is None:
        return f"<unnamed{number}>"
    if number < len(SPECIAL_WORDS):
        return token
    return token.removesuffix(END) if token.endswith(END) else token + _CONTINUES


def counts_of(words: Sequence[str]) -> dict[str, int]:
    """Return a count for each word; the original wants them to fall, and ours are not kept."""
    special = len(SPECIAL_WORDS)
    falling = (len(words) - number for number in range(len(words)))
    return {
        word: 0 if number < special else count
        for (number, word), count in zip(enumerate(words), falling, strict=True)
    }


def vocab_file(words: Sequence[str]) -> bytes:
    """Return the original's ``vocab`` file: a word and its count in each line."""
    counts = counts_of(words)
    lines = [f"{word} {counts[word]}\n" for word in words[len(SPECIAL_WORDS) :]]
    return _encoded("".join(lines))


def codes_file(merges: bytes) -> bytes:
    """Return the original's ``codes`` file: two symbols and their count in each line."""
    ranks = ranks_of(merges.decode("utf-8", "replace"))
    pairs = [line.rstrip("\n") for line in lines_of_merges(ranks)]
    return _encoded("".join(f"{pair} {len(pairs) - n}\n" for n, pair in enumerate(pairs)))
