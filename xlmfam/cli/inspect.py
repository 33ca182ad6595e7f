"""``xlmfam inspect``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from xlmfam.cli.options import (
    FORMATS,
    TRAINED,
    add_class_option,
    add_hub_options,
    add_source,
    hub_options,
    new_command,
)

DESCRIPTION = """\
Say what a checkpoint holds, from its headers alone: family, class, format, every parameter with
shape, dtype and size, which ones are shared, and all that would keep it from being loaded. Exits
with 1 when there is such a problem."""

EXAMPLES = """\
  xlmfam inspect facebook/xglm-564M
  xlmfam inspect my-model/tf_model.h5
  xlmfam inspect my-model --json | python -m json.tool"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = new_command(
        subparsers, "inspect", "say what a checkpoint holds", DESCRIPTION, EXAMPLES
    )
    add_source(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    parser.add_argument(
        "--format", choices=(*FORMATS, *TRAINED), help="look only at this format of SRC"
    )
    add_class_option(parser)
    add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from xlmfam.conversion import inspect

    contents = inspect(args.source, head=args.head, format=args.format, **hub_options(args))
    print(json.dumps(contents.to_dict(), indent=2) if args.json else contents)
    return 0 if contents.ok else 1
