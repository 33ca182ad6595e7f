"""``xlmfam verify``."""

from __future__ import annotations

import argparse
from typing import Any

from xlmfam.cli.options import (
    add_class_option,
    add_hub_options,
    add_source,
    hub_options,
    new_command,
    preload,
    split_list,
)

DESCRIPTION = """\
Run a checkpoint in every installed backend, in float32 on the same batch (with padding on both
sides), and compare hidden states of every layer, logits, loss, and the gradient of every
parameter. Prints the largest differences, relative to the largest values; exits with 1 when any
is beyond the tolerance or a backend cannot load the checkpoint."""

EXAMPLES = """\
  xlmfam verify my-model
  xlmfam verify facebook/xglm-564M --backends pt,flax
  xlmfam verify my-model --tolerance 1e-5 --no-gradients"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = new_command(
        subparsers, "verify", "compare a checkpoint across frameworks", DESCRIPTION, EXAMPLES
    )
    add_source(parser)
    parser.add_argument(
        "--backends",
        type=split_list,
        metavar="LIST",
        help="two or more of pt,tf,flax (default: those that are installed)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=5e-5, help="largest difference allowed (default 5e-5)"
    )
    parser.add_argument(
        "--no-gradients", action="store_true", help="compare forward passes only; needs less memory"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the example batch (default 0)")
    add_class_option(parser)
    add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from xlmfam.conversion import verify
    from xlmfam.conversion.runners import installed_backends, require_backend

    for backend in args.backends or ():
        require_backend(backend)
    if not args.debug:
        preload(args.backends or installed_backends())
    verification = verify(
        args.source,
        args.backends,
        args.tolerance,
        gradients=not args.no_gradients,
        seed=args.seed,
        head=args.head,
        **hub_options(args),
    )
    print(verification)
    return 0 if verification.ok else 1
