"""``xlmfam fill``."""

from __future__ import annotations

import argparse
from typing import Any

import xlmfam.cli.options as options

MASK = "<mask>"

DESCRIPTION = """\
Guess the hidden words of a text (or of several, in one batch) with a masked language model, in the
framework of your choice, and print the best guesses with their probabilities. Hidden words are
written <mask>, whatever the mask token of the tokenizer is; the tokenizer is the one in SRC."""

EXAMPLES = """\
  xlmfam fill FacebookAI/xlm-mlm-ende-1024 "Berlin is the <mask> of Germany." --lang en
  xlmfam fill my-xmod "The <mask> sleeps." "Der <mask> schläft." --lang en_XX,de_DE
  xlmfam fill my-model "Der <mask> schläft im <mask>." --lang de --top-k 3 --backend flax"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = options.new_command(subparsers, "fill", "guess hidden words", DESCRIPTION, EXAMPLES)
    options.add_source(parser)
    parser.add_argument(
        "texts",
        metavar="TEXT",
        nargs="+",
        help="the text, with <mask> for each hidden word, or several texts",
    )
    options.add_backend_option(parser)
    options.add_lang_option(parser)
    parser.add_argument(
        "--top-k",
        type=options.positive_int,
        default=5,
        metavar="K",
        help="number of guesses (default 5)",
    )
    options.add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    backend = options.chosen_backend(args, "fill")
    tokenizer = options.load_tokenizer(args, "fill")
    langs = options.chosen_langs(args, tokenizer, len(args.texts))
    texts = [_with_masks(text, tokenizer, args.source) for text in args.texts]
    model = options.load_model(args, backend)
    options.require_method(model, "fill_mask", "fill", "a masked language model")
    found = model.fill_mask(texts, tokenizer, top_k=args.top_k, lang=langs)
    for text, guesses in zip(args.texts, found, strict=True):
        if len(texts) > 1:
            print(text)
        _print(guesses)
    return 0


def _print(found: list[Any]) -> None:
    """Print the guesses for one text: those for its hidden word, or a list for each of several."""
    several = isinstance(found[0], list)
    for number, guesses in enumerate(found if several else [found], start=1):
        if several:
            print(f"{MASK} {number}")
        for guess in guesses:
            print(f"{guess['score']:7.2%}  {guess['token_str']}  |  {guess['sequence']}")


def _with_masks(text: str, tokenizer: Any, source: str) -> str:
    """Return the text with the tokenizer's own mask token; raise where nothing is hidden."""
    from xlmfam.common.errors import XlmfamError

    token = tokenizer.mask_token
    if token is None:
        raise XlmfamError(f"fill needs a tokenizer with a mask token; that of {source} has none")
    text = text.replace(MASK, token)
    if token not in text:
        raise XlmfamError(f"TEXT hides no word: put {MASK} in the place of one")
    return text
