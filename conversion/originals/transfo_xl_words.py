"""The vocabulary of kimiyoung's code, which lies beside a checkpoint, as a tokenizer of ours.

``cache.pt`` and ``cache.pkl`` are pickles of a whole corpus; of them the words are read and
nothing is executed. ``1b_word_vocab.txt`` and ``vocab.txt`` are lines of words.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlmfam.common.errors import XlmfamError

# In the order in which they are looked for.
_NAMES = ("cache.pt", "cache.pkl", "vocab.json", "vocab.txt", "1b_word_vocab.txt", "vocab.pkl")
# The public checkpoints have them in a folder beside the model's.
_FOLDERS = (".", "data", "../data")
_OURS = "tokenizer_config.json"
_UNKNOWN = ("<unk>", "<UNK>")
_ENDS = ("<eos>", "<S>")
_CONFIG = "tokenizer_config.json"


@dataclass
class Words:
    """A vocabulary that was found.

    Attributes:
        files: The tokenizer's files, by name.
        eos_token_id: Id of the word that ends a line, if there is one.
        notes: What the user should know.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    eos_token_id: int | None = None
    notes: list[str] = field(default_factory=list)


def find_words(folder: Path, vocab_size: int) -> Words:
    """Return the tokenizer for a checkpoint, of the vocabulary beside it.

    Args:
        folder: Where the checkpoint is.
        vocab_size: How many words the model knows; a vocabulary of others is not its own.
    """
    if (folder / _OURS).is_file():
        return _ours(folder)
    notes = []
    for place in _FOLDERS:
        for name in _NAMES:
            path = folder / place / name
            if not path.is_file():
                continue
            try:
                found = _tokenizer(path, vocab_size)
            except XlmfamError as error:
                notes.append(f"no tokenizer is made of it: {error}")
                continue
            return Words(found.files, found.eos_token_id, [*notes, *found.notes])
    if not notes:
        notes.append(f"no vocabulary lies beside it ({', '.join(_NAMES[:3])}), so no tokenizer")
    return Words(notes=notes)


def _ours(folder: Path) -> Words:
    """Return the files of a tokenizer that is one of ours already."""
    from xlmfam.common.tokenizers.transfo_xl import VOCAB_FILES_NAMES, TransfoXLTokenizer

    tokenizer = TransfoXLTokenizer.from_pretrained(folder)
    names = [_CONFIG, "special_tokens_map.json", "added_tokens.json", *VOCAB_FILES_NAMES.values()]
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    return Words(files, tokenizer.eos_token_id)


def _tokenizer(path: Path, vocab_size: int) -> Words:
    """Return the tokenizer of a vocabulary file.

    Raises:
        XlmfamError: The file is damaged, or its vocabulary is another model's.
    """
    from xlmfam.common.tokenizers.transfo_xl_vocabulary import read_words

    words, settings = read_words(path)
    words = _decoded(words)
    if len(words) != vocab_size:
        raise XlmfamError(f"{path} has {len(words)} words, the model {vocab_size}")
    eos = next((word for word in _ENDS if word in words), None)
    special: dict[str, Any] = {
        "unk_token": next((word for word in _UNKNOWN if word in words), None),
        "eos_token": eos,
        "additional_special_tokens": [],
    }
    note = (
        f"the tokenizer of {path.name} takes text as the original does, with spaces between its "
        "words; original_steps=False makes it find the words of ordinary text"
    )
    files = _written(words, settings, special)
    return Words(files, None if eos is None else words.index(eos), [note])


def _decoded(words: Sequence[str]) -> list[str]:
    """Return words as text where Python 2 wrote their bytes."""
    if all(word.isascii() for word in words):
        return list(words)
    try:
        decoded = [word.encode("latin-1").decode("utf-8") for word in words]
    except UnicodeError:
        return list(words)
    return decoded if len(set(decoded)) == len(words) else list(words)


def _written(
    words: Sequence[str], settings: Mapping[str, Any], special: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the files of a tokenizer."""
    from xlmfam.common.tokenizers.transfo_xl import TransfoXLTokenizer

    settings = {name: value for name, value in settings.items() if value is not None}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = {word: number for number, word in enumerate(words)}
        path = folder / "vocab.json"
        path.write_text(json.dumps(ids), encoding="utf-8")
        tokenizer = TransfoXLTokenizer(vocab_file=path, original_steps=True, **settings, **special)
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        # What it has not must be said: left out, it would be a new word behind the model's last.
        config |= special
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return {entry.name: entry.read_bytes() for entry in sorted(folder.iterdir())}


def write_words(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the vocabulary as lines, which the original takes as ``vocab_file``.

    Args:
        folder: Where to.
        files: The tokenizer's files, which may have them already.
    """
    content = files.get("vocab.json")
    if content is None or "vocab.txt" in files:
        return
    from xlmfam.common.tokenizers.transfo_xl_vocabulary import write_text

    ids = json.loads(content)
    words = sorted(ids, key=lambda word: ids[word]) if isinstance(ids, dict) else ids
    write_text(folder / "vocab.txt", words)
