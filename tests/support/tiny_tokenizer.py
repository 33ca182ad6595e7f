"""A small XGLM tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path

from xlmfam.cli.demo_text import read_corpus, train_tokenizer


def make_tokenizer(folder, groups=6, pieces=500):
    """Train a tokenizer on a little of the demo's corpus and save it in ``folder``."""
    return train_tokenizer(read_corpus(groups), Path(folder), pieces)
