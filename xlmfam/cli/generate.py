"""``xlmfam generate``."""

from __future__ import annotations

import argparse
from typing import Any

import xlmfam.cli.options as options

DESCRIPTION = """\
Continue a prompt (or several, in one batch) with a checkpoint, in the framework of your choice, and
print prompt and continuation. The tokenizer is the one in SRC. What is not said here is taken from
the checkpoint's generation_config.json."""

EXAMPLES = """\
  xlmfam generate facebook/xglm-564M "Hello, my name is"
  xlmfam generate my-model "Es war einmal" --backend flax --num-beams 4
  xlmfam generate FacebookAI/xlm-clm-ende-1024 "Das Wetter ist" --lang de
  xlmfam generate my-xmod "The weather" "Das Wetter" --lang en_XX,de_DE
  xlmfam generate my-model "我叫" --do-sample --temperature 0.8 --top-p 0.9 --seed 1 --stream"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = options.new_command(subparsers, "generate", "continue prompts", DESCRIPTION, EXAMPLES)
    options.add_source(parser)
    parser.add_argument(
        "prompts", metavar="PROMPT", nargs="+", help="the text to continue, or several"
    )
    options.add_backend_option(parser)
    options.add_lang_option(parser)
    parser.add_argument(
        "--max-new-tokens", type=options.positive_int, default=40, metavar="N", help="default 40"
    )
    parser.add_argument(
        "--num-beams", type=options.positive_int, metavar="N", help="beam search of this width"
    )
    parser.add_argument("--do-sample", action="store_true", help="draw tokens at random")
    parser.add_argument("--temperature", type=float, metavar="T", help="lower is less random")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K best tokens")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the best tokens of probability P"
    )
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument(
        "--stream", action="store_true", help="print text as it comes (PyTorch, no beams)"
    )
    options.add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from xlmfam.conversion.runners import generate

    backend = options.chosen_backend(args, "generate")
    _check(args, backend)
    tokenizer = options.load_tokenizer(args, "generate")  # first: it is quick, and may be missing
    langs = options.chosen_langs(args, tokenizer, len(args.prompts))
    model = options.load_model(args, backend)
    _require_continuing(model)
    extra = _given(args)
    if langs is not None and model.config.uses_languages:
        extra[model.config.language_argument] = langs
    if args.stream:
        from xlmfam.pt import TextStreamer

        extra["streamer"] = TextStreamer(tokenizer, skip_special_tokens=True)
    ids = generate(backend, model, _inputs(tokenizer, args.prompts, langs), **extra)
    if not args.stream:
        for text in tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True):
            print(text)
    return 0


def _require_continuing(model: Any) -> None:
    from xlmfam.common.errors import XlmfamError

    options.require_method(model, "generate", "generate", "a model with a language-modelling head")
    if hasattr(model, "translate"):
        raise XlmfamError(f"{model.table_class} translates: use `xlmfam translate`")


def _inputs(tokenizer: Any, prompts: list[str], langs: str | list[str] | None) -> dict[str, Any]:
    """The prompts' ids, padded on the left, and their mask."""
    call: dict[str, Any] = {}
    end = 0
    if options.takes_languages(tokenizer):
        call = {"add_special_tokens": False, "lang": langs}
    else:
        end = _tokens_behind(tokenizer)
    rows = tokenizer(prompts, **call)["input_ids"]
    # An end behind the prompt, which most tokenizers put, would be the end of the text.
    rows = [row[: len(row) - end] for row in rows]
    return _padded(rows, tokenizer.pad_token_id or 0)


def _padded(rows: list[list[int]], pad: int) -> dict[str, Any]:
    """Rows of ids with padding on the left, and their mask: it tells, so any id will do as one."""
    import numpy as np

    width = max(len(row) for row in rows)
    missing = [width - len(row) for row in rows]
    return {
        "input_ids": np.array([[pad] * n + row for n, row in zip(missing, rows, strict=True)]),
        "attention_mask": np.array([[0] * n + [1] * (width - n) for n in missing]),
    }


def _tokens_behind(tokenizer: Any) -> int:
    """Number of tokens that a tokenizer puts behind a text."""
    text = -1  # no token has this id
    whole = tokenizer.build_inputs_with_special_tokens([text])
    return len(whole) - 1 - whole.index(text)


def _check(args: argparse.Namespace, backend: str) -> None:
    from xlmfam.common.errors import XlmfamError

    if args.stream and backend != "pt":
        raise XlmfamError(f"--stream works with --backend pt only, not {backend}")
    if args.stream and (args.num_beams or 1) > 1:
        raise XlmfamError("--stream cannot be combined with --num-beams: beams change their minds")
    sampling = [
        n for n in ("temperature", "top_k", "top_p", "seed") if getattr(args, n) is not None
    ]
    if sampling and not args.do_sample:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sampling)
        raise XlmfamError(f"{flags} needs --do-sample: without it the best token is always taken")
    if args.stream and len(args.prompts) > 1:
        raise XlmfamError(f"--stream takes one PROMPT, got {len(args.prompts)}")
    if not all(prompt.strip() for prompt in args.prompts):
        raise XlmfamError("PROMPT is empty; give a text to continue")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of generation that the command line has."""
    names = ("max_new_tokens", "num_beams", "temperature", "top_k", "top_p", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return {**given, "do_sample": True} if args.do_sample else given
