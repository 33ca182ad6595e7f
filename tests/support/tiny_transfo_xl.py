"""A tiny Transformer-XL on the spot: a tokenizer of a little of the demo's text, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_checkpoints import save

from xlmfam import TransfoXLConfig, TransfoXLTokenizer
from xlmfam.cli.demo_text import read_corpus
from xlmfam.common.parameters import Kind, table_of

# Every size is different from the others, so that no swapped axis goes unnoticed.
SIZES = {
    "d_model": 18,
    "d_embed": 12,
    "n_head": 3,
    "d_head": 5,
    "d_inner": 23,
    "div_val": 2,
    "n_layer": 1,  # what several layers do the golden numbers show
    "mem_len": 9,
    "clamp_len": 7,
    "dropout": 0.0,
    "dropatt": 0.0,
}


def make_transfo_xl_tokenizer(folder, groups=6):
    """Count the words of a little of the demo's corpus; return a tokenizer read from ``folder``."""
    counted = TransfoXLTokenizer(special=["<eos>", "<unk>"])
    counted.count_sents(counted.tokenize(line) for line in read_corpus(groups))
    counted.build_vocab()
    counted.save_pretrained(folder)
    return TransfoXLTokenizer.from_pretrained(folder, pad_token="<eos>")


def make_transfo_xl(folder, tokenizer, head="TransfoXLLMHeadModel", seed=0, **settings):
    """Write a checkpoint with random weights, without any framework, and its tokenizer."""
    words = len(tokenizer)
    # A head and two tails, of which English texts have words.
    vocabulary = {"vocab_size": words, "cutoffs": [words // 9, words // 5]}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = TransfoXLConfig(**{**SIZES, **vocabulary, **ids, **settings})
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.float32(0.3 * rng.normal(size=p.shape) + (p.kind is Kind.NORM_SCALE))
        for name, p in table_of("transfo-xl").expand(config, head).items()
        if p.tied_to is None
    }
    save(Path(folder), arrays, config, head)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def make_transfo_xl_text(folder, groups=6):
    """Write train.txt, valid.txt and test.txt with a little of the demo's text."""
    folder, lines = Path(folder), read_corpus(groups)
    folder.mkdir()
    for split, part in (("train", lines), ("valid", lines[:13]), ("test", lines[13:39])):
        (folder / f"{split}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    return folder
