"""``xlmfam diff``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from xlmfam.cli.options import (
    FORMATS,
    RELEASES,
    TRAINED,
    add_hub_options,
    hub_options,
    new_command,
)

DESCRIPTION = """\
Compare two checkpoints of any formats tensor by tensor, in canonical names and layout, and their
configs. Prints what differs, the worst first: the number of values that differ, the largest
absolute difference, and the same in relation to the tensor's largest value. Exits with 1 when
anything differs by more than the tolerance. No framework runs; memory stays small."""

EXAMPLES = """\
  xlmfam diff facebook/xglm-564M xglm-tf
  xlmfam diff my-model my-model-bf16 --tolerance 4e-3
  xlmfam diff old/pytorch_model.bin new --json | python -m json.tool"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = new_command(
        subparsers, "diff", "compare two checkpoints of any formats", DESCRIPTION, EXAMPLES
    )
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help="folder, file of weights, or hub id")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="largest relative difference that counts as none (default 0); above zero, dtypes may "
        "differ too",
    )
    parser.add_argument(
        "--weights-only", action="store_true", help="do not compare classes and configs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    for name in ("a", "b"):
        parser.add_argument(
            f"--format-{name}",
            choices=(*FORMATS, *RELEASES, *TRAINED),
            help=f"read only this format of {name.upper()}",
        )
        parser.add_argument(
            f"--class-{name}", metavar="NAME", help=f"class of {name.upper()}, e.g. XGLMModel"
        )
    add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from xlmfam.conversion import diff

    difference = diff(
        args.a,
        args.b,
        tolerance=args.tolerance,
        weights_only=args.weights_only,
        heads=(args.class_a, args.class_b),
        formats=(args.format_a, args.format_b),
        **hub_options(args),
    )
    print(json.dumps(difference.to_dict(), indent=2) if args.json else difference)
    return 0 if difference.ok else 1
