"""A tiny XLM on the spot: a tokenizer trained on a little of the demo's text, and checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_checkpoints import save

from xlmfam import XLMConfig
from xlmfam.cli.demo_text import read_corpus
from xlmfam.cli.demo_xlm_text import train_tokenizer, with_languages
from xlmfam.common.parameters import Kind, table_of

# Every size is different from the others, so that no swapped axis goes unnoticed.
SIZES = {
    "emb_dim": 24,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 41,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "summary_first_dropout": 0.0,
}


def make_xlm_tokenizer(folder, groups=6, pieces=400):
    """Train byte pairs on a little of the demo's corpus and save the tokenizer in ``folder``."""
    return train_tokenizer(with_languages(read_corpus(groups)), Path(folder), pieces)


def make_xlm(folder, tokenizer, head="XLMWithLMHeadModel", seed=0, **settings):
    """Write a checkpoint with random weights, without any framework, and its tokenizer."""
    languages = {"n_langs": len(tokenizer.lang2id), "lang2id": tokenizer.lang2id}
    config = XLMConfig(**{**SIZES, "vocab_size": len(tokenizer), **languages, **settings})
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.float32(0.3 * rng.normal(size=p.shape) + (p.kind is Kind.NORM_SCALE))
        for name, p in table_of("xlm").expand(config, head).items()
        if p.tied_to is None
    }
    save(Path(folder), arrays, config, head)
    tokenizer.save_pretrained(folder)
    return Path(folder)
