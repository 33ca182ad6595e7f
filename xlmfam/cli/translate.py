"""``xlmfam translate``."""

from __future__ import annotations

import argparse
from typing import Any

import xlmfam.cli.options as options

DESCRIPTION = """\
Translate a text with an XLM translation model (XLMEncoderDecoder), in the framework of your choice,
and print the translation. The tokenizer is the one in SRC; the search is that of the original
release."""

EXAMPLES = """\
  xlmfam translate my-xlm-mt "Der Hund schläft." --from de --to en
  xlmfam translate my-xlm-mt "The dog sleeps." --from en --to fr --num-beams 4 --backend tf"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = options.new_command(subparsers, "translate", "translate a text", DESCRIPTION, EXAMPLES)
    options.add_source(parser)
    parser.add_argument("text", metavar="TEXT", help="the text to translate")
    parser.add_argument(
        "--from", dest="lang", metavar="CODE", required=True, help="language of the text"
    )
    parser.add_argument(
        "--to", dest="target", metavar="CODE", required=True, help="language to translate into"
    )
    options.add_backend_option(parser)
    parser.add_argument(
        "--num-beams",
        type=options.positive_int,
        default=1,
        metavar="N",
        help="beam search of this width (default 1, greedy)",
    )
    parser.add_argument(
        "--max-length", type=options.positive_int, metavar="N", help="most tokens of the result"
    )
    parser.add_argument(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="P",
        help="for beams: above 1 favours longer translations (default 1)",
    )
    options.add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    backend = options.chosen_backend(args, "translate")
    _check(args)
    tokenizer = options.load_tokenizer(args, "translate")
    known = options.known_langs(args, tokenizer)
    for flag, lang in (("--from", args.lang), ("--to", args.target)):
        options.check_lang(flag, lang, args.source, known)
    model = options.load_model(args, backend)
    options.require_method(model, "translate", "translate", "an XLMEncoderDecoder")
    text = model.translate(
        args.text,
        tokenizer,
        source_lang=args.lang,
        target_lang=args.target,
        num_beams=args.num_beams,
        max_length=args.max_length,
        length_penalty=args.length_penalty,
    )
    print(text)
    return 0


def _check(args: argparse.Namespace) -> None:
    from xlmfam.common.errors import XlmfamError

    if not args.text.strip():
        raise XlmfamError("TEXT is empty; give a text to translate")
