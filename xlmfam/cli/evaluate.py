"""``xlmfam evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import xlmfam.cli.options as options

DESCRIPTION = """\
Measure how well a language model with memories (Transformer-XL) predicts a text: perplexity, and
bits per token and character. The text is read in segments that hand on their memories, as the
paper does. TEXT is a file of plain text, for the tokenizer in SRC, or token ids
in a NumPy file (.npy)."""

EXAMPLES = """\
  xlmfam evaluate my-transfo-xl test.txt
  xlmfam evaluate my-transfo-xl test.npy --segment-length 128 --memory-length 640 --clamp-length 400
  xlmfam evaluate my-transfo-xl test.txt --batch-size 8 --backend flax"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = options.new_command(
        subparsers, "evaluate", "measure the perplexity of a text", DESCRIPTION, EXAMPLES
    )
    options.add_source(parser)
    parser.add_argument("text", metavar="TEXT", help="file of plain text, or .npy of token ids")
    options.add_backend_option(parser)
    for flag, default, summary in (
        ("--batch-size", 1, "rows that the text is cut into (default 1)"),
        ("--segment-length", 128, "tokens of a call (default 128)"),
    ):
        parser.add_argument(
            flag, type=options.positive_int, default=default, metavar="N", help=summary
        )
    parser.add_argument(
        "--tokenized",
        action="store_true",
        help="the text is tokenised already, as the WikiText files are: 1 @,@ 000",
    )
    parser.add_argument(
        "--memory-length", type=int, metavar="N", help="tokens to remember (default: the model's)"
    )
    parser.add_argument(
        "--clamp-length",
        type=int,
        metavar="N",
        help="distances beyond it count as it (default: the model's)",
    )
    options.add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    backend = options.chosen_backend(args, "evaluate")
    ids, characters = _read(args)
    model = options.load_model(args, backend)
    options.require_method(
        model, "evaluate_perplexity", "evaluate", "a language model with memories"
    )
    found = model.evaluate_perplexity(
        ids,
        batch_size=args.batch_size,
        segment_length=args.segment_length,
        memory_length=args.memory_length,
        clamp_length=args.clamp_length,
    )
    print(f"tokens             {found.tokens}")
    print(f"loss               {found.loss:.4f}")
    print(f"perplexity         {found.perplexity:.2f}")
    print(f"bits per token     {found.bits_per_token:.4f}")
    if characters:
        print(f"bits per character {found.bits_per_character(characters):.4f}")
    return 0


def _read(args: argparse.Namespace) -> tuple[Any, int]:
    """Return the ids of the text, and the number of characters where they are known.

    Raises:
        XlmfamError: When it cannot be read.
    """
    import numpy as np

    from xlmfam.common.errors import XlmfamError

    path = Path(args.text).expanduser()
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False), 0
        except ValueError as error:
            raise XlmfamError(f"{path} is no NumPy file of token ids: {error}") from error
    tokenizer = options.load_tokenizer(args, "evaluate")
    if not hasattr(tokenizer, "encode_file"):
        raise XlmfamError(f"evaluate needs Transformer-XL's tokenizer; {args.source} has another")
    if args.tokenized:
        tokenizer.original_steps = True
    ids = tokenizer.encode_file(path, ordered=True)
    return ids, len(path.read_text(encoding="utf-8"))
