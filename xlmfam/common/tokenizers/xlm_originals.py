"""The vocabulary files of facebookresearch/XLM: ``vocab`` with counts, and ``codes``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from xlmfam.common.errors import CheckpointError

from .files import prepare_folder, write_atomically, write_json
from .xlm_bpe import END, lines_of_merges, read_merges

SPECIAL_WORDS = ("<s>", "</s>", "<pad>", "<unk>", *(f"<special{n}>" for n in range(10)))
# The originals mark a piece that does not end its word, and not the end of words.
_CONTINUES = "@@"


def vocabulary_of_words(words: Iterable[str]) -> dict[str, int]:
    """Return token to id, as ``vocab.json`` has it, from the words of an original dictionary.

    Args:
        words: In the order of ids, the special words first (``dico_id2word`` of a checkpoint).
    """
    vocabulary: dict[str, int] = {}
    for number, word in enumerate(words):
        token = word
        if number >= len(SPECIAL_WORDS):
            continues = word.endswith(_CONTINUES) and word != _CONTINUES
            token = word.removesuffix(_CONTINUES) if continues else word + END
        if token in vocabulary:
            raise CheckpointError(
                f"word {number}, {word!r}, is the token {token!r}, which is word "
                f"{vocabulary[token]} already"
            )
        vocabulary[token] = number
    return vocabulary


def read_original_words(path: str | os.PathLike[str]) -> list[str]:
    """Return the words of a ``vocab`` file in the order of ids, the special words first.

    Lines that the original skips (no count, more than two parts, a word again) are skipped.

    Raises:
        CheckpointError: the file is missing or no text, or has no word.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as text: {error}") from error
    words: dict[str, None] = dict.fromkeys(SPECIAL_WORDS)
    for line in text.split("\n"):
        parts = line.split()
        if len(parts) == 2 and parts[1].isdigit() and "\u2028" not in line:
            words.setdefault(parts[0])
    if len(words) == len(SPECIAL_WORDS):
        raise CheckpointError(f"{path} has no line with a word and its count")
    return list(words)


def convert_original_files(
    vocab_file: str | os.PathLike[str],
    codes_file: str | os.PathLike[str],
    save_directory: str | os.PathLike[str],
) -> tuple[str, str]:
    """Write ``vocab.json`` and ``merges.txt`` from the files of the original release.

    Args:
        vocab_file: The original ``vocab``, a word and its count in each line.
        codes_file: The original ``codes``, two symbols and their count in each line.
        save_directory: The folder to write into; it is created where it is missing.

    Returns:
        The paths of the two files.
    """
    vocabulary = vocabulary_of_words(read_original_words(vocab_file))
    ranks = read_merges(codes_file)
    folder = prepare_folder(save_directory)
    write_json(folder / "vocab.json", vocabulary)
    content = "".join(lines_of_merges(ranks)).encode("utf-8")
    write_atomically(folder / "merges.txt", content)
    return str(folder / "vocab.json"), str(folder / "merges.txt")
