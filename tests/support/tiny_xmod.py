"""A tiny X-MOD on the spot: a tokenizer trained on a little of the demo's text, and checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_checkpoints import save

from xlmfam import XLMRobertaTokenizer, XmodConfig
from xlmfam.cli.demo_text import read_corpus, train_tokenizer
from xlmfam.common.parameters import Kind, table_of

LANGUAGES = ("en_XX", "de_DE", "sw_KE")
# Every size is different from the others, so that no swapped axis goes unnoticed.
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 1,  # what layers have in common the golden numbers show
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 43,
    "type_vocab_size": 1,
    "adapter_reduction_factor": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def make_xmod_tokenizer(folder, groups=6, pieces=400):
    """Train pieces on a little of the demo's corpus; return XLM-R's tokenizer of them."""
    # They are saved as XGLM's, whose settings are not to lie beside X-MOD's.
    pieces_of = train_tokenizer(read_corpus(groups), Path(folder) / "pieces", pieces)
    return XLMRobertaTokenizer(pieces_of.vocab_file)


def make_xmod(folder, tokenizer, head="XmodForMaskedLM", seed=0, **settings):
    """Write a checkpoint with random weights, without any framework, and its tokenizer."""
    words = {"vocab_size": len(tokenizer), "languages": LANGUAGES}
    config = XmodConfig(**{**SIZES, **words, **settings})
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.float32(0.3 * rng.normal(size=p.shape) + (p.kind is Kind.NORM_SCALE))
        for name, p in table_of("xmod").expand(config, head).items()
        if p.tied_to is None
    }
    save(Path(folder), arrays, config, head)
    tokenizer.save_pretrained(folder)
    return Path(folder)
