"""The ``xlmfam`` command: what it can do, and how it reports mistakes.

Exit codes: 0 done, 1 the answer is no (backends disagree, a checkpoint has problems), 2 a mistake
in the command or its files, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from xlmfam import __version__
from xlmfam.cli.options import note, quiet_frameworks

COMMANDS = (
    "convert",
    "verify",
    "inspect",
    "diff",
    "languages",
    "generate",
    "fill",
    "translate",
    "evaluate",
    "demo",
)

DESCRIPTION = """\
Work with checkpoints of XGLM, XLM, X-MOD and Transformer-XL in PyTorch, TensorFlow and Flax: move
them between frameworks, prove that nothing was lost, look into them, run them."""

EXAMPLES = """\
examples:
  xlmfam demo                                      train, convert, verify, generate, report
  xlmfam convert facebook/xglm-564M xglm-tf --to tf
  xlmfam verify xglm-tf
  xlmfam inspect facebook/xglm-564M
  xlmfam diff xglm-tf facebook/xglm-564M
  xlmfam languages facebook/xmod-base xmod-sw --add sw_KE --init-from en_XX
  xlmfam generate facebook/xglm-564M "Hello, my name is" --backend flax
  xlmfam fill FacebookAI/xlm-mlm-ende-1024 "Berlin is the <mask> of Germany." --lang en
  xlmfam translate my-xlm-mt "Der Hund schläft." --from de --to en
  xlmfam evaluate my-transfo-xl test.txt --memory-length 640

`xlmfam COMMAND --help` says more about each."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes read like all others of the command."""

    def error(self, message: str) -> NoReturn:
        """Print one line and where to find help; exit with 2."""
        note(f"error: {message}\n(`{self.prog} --help` lists what can be given)")
        self.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="xlmfam",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"xlmfam {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"xlmfam.cli.{name}")
        command = module.add_parser(subparsers)
        command.add_argument(
            "--debug", action="store_true", help="show tracebacks and what frameworks log"
        )
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after ``xlmfam``; by default those of this process.

    Returns:
        The exit code.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        if not args.debug:
            quiet_frameworks()
        return args.run(args)
    except KeyboardInterrupt:
        note("\ninterrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output has left, e.g. `| head`; nothing may be written on exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug or not _is_mistake(error):
            raise
        note(f"error: {error}")
        return 2


def _is_mistake(error: Exception) -> bool:
    """Whether the user can mend it: our own errors, and files that cannot be read or written."""
    from xlmfam.common.errors import XlmfamError

    return isinstance(error, XlmfamError | OSError)


if __name__ == "__main__":
    sys.exit(main())
