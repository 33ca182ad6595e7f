"""``xlmfam convert``."""

from __future__ import annotations

import argparse
from typing import Any

from xlmfam.cli.options import (
    FORMATS,
    RELEASES,
    TARGETS,
    TRAINED,
    add_class_option,
    add_hub_options,
    add_languages_option,
    add_source,
    hub_options,
    new_command,
    note,
    preload,
)

DESCRIPTION = """\
Write a checkpoint into a new folder in another file format. The weights are first held against
the family's parameter table: a damaged or foreign checkpoint is refused and nothing is written.
Config, generation options and tokenizer files go along, and a report (conversion_report.json and
.html) of what went where. Tensors are carried over in blocks, so memory stays small; a conversion
that was killed is taken up again by the same command. No framework is needed but to read
pytorch_model.bin, which needs PyTorch."""

EXAMPLES = """\
  xlmfam convert facebook/xglm-564M xglm-flax --to flax
  xlmfam convert old/pytorch_model.bin new --to safetensors --dtype bfloat16
  xlmfam convert facebook/xmod-base two --languages en_XX de_DE
  xlmfam convert big split --max-shard-size 2GB --verify"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = new_command(
        subparsers, "convert", "write a checkpoint in another format", DESCRIPTION, EXAMPLES
    )
    add_source(parser)
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument(
        "--to",
        choices=(*FORMATS, *TARGETS),
        default="safetensors",
        help="model.safetensors (default), pytorch_model.bin (pt), tf_model.h5 (tf), "
        "flax_model.msgpack (flax), ...; original: what the family's own code reads",
    )
    parser.add_argument(
        "--from",
        dest="source_format",
        choices=(*FORMATS, *RELEASES, *TRAINED),
        help="read only this format of SRC",
    )
    parser.add_argument("--dtype", help="cast to float32, bfloat16, ... (default: as stored)")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="split above this (default 5GB)"
    )
    add_languages_option(
        parser, "--languages", "read the adapters of these languages only (X-MOD), in this order"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint that is in DST already"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="then run DST in every installed backend, and compare with SRC",
    )
    add_class_option(parser)
    add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from xlmfam.conversion import convert

    report = convert(
        args.source,
        args.target,
        args.to,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        overwrite=args.overwrite,
        languages=args.languages or None,
        head=args.head,
        source_format=args.source_format,
        **hub_options(args),
    )
    print(report)
    for warning in report.warnings:
        note(f"warning: {warning}")
    if not args.verify:
        return 0
    from xlmfam.conversion.convert import with_verification
    from xlmfam.conversion.runners import installed_backends

    if not args.debug:
        preload(installed_backends())
    verification = with_verification(report, **hub_options(args)).verification
    print(f"\n{verification}")
    return 0 if verification is not None and verification.ok else 1
