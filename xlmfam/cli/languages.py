"""``xlmfam languages``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from xlmfam.cli.options import (
    add_hub_options,
    add_languages_option,
    add_source,
    hub_options,
    new_command,
)

DESCRIPTION = """\
List the languages of a checkpoint with their ids. With DST, write a copy of an X-MOD checkpoint
with other languages: those that come get new adapters, those that go lose theirs, and everything
else is copied bit for bit, one tensor at a time. No framework is needed."""

EXAMPLES = """\
  xlmfam languages facebook/xmod-base
  xlmfam languages my-xmod my-xmod-sw --add sw_KE --init-from en_XX
  xlmfam languages my-xmod my-xmod-small --remove de_DE fr_XX --default en_XX"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = new_command(
        subparsers, "languages", "list, add or remove languages", DESCRIPTION, EXAMPLES
    )
    add_source(parser)
    parser.add_argument(
        "target", metavar="DST", nargs="?", help="folder to write, where something changes"
    )
    add_languages_option(parser, "--add", "codes of languages that get new adapters")
    parser.add_argument(
        "--init-from",
        metavar="CODE",
        help="what new adapters begin as: random (default), the mean of those that there are, or "
        "the language to copy",
    )
    parser.add_argument("--seed", type=int, help="of random beginnings (default 0)")
    add_languages_option(parser, "--remove", "codes of languages whose adapters are left out")
    parser.add_argument("--default", metavar="CODE", help="language of texts that name none")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint that is in DST already"
    )
    parser.add_argument("--json", action="store_true", help="list as JSON, for other programs")
    add_hub_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    _check(args)
    print(_changed(args) if args.target else _listed(args))
    return 0


def _check(args: argparse.Namespace) -> None:
    from xlmfam.common.errors import XlmfamError

    changes = [flag for flag in ("add", "remove", "default") if getattr(args, flag)]
    if args.target is None and (changes or args.overwrite):
        flag = changes[0] if changes else "overwrite"
        raise XlmfamError(f"--{flag} needs DST: languages change in a copy, SRC stays as it is")
    if args.target is not None and not changes:
        raise XlmfamError("nothing changes: say --add, --remove or --default, or leave DST out")
    if args.target is not None and args.json:
        raise XlmfamError("--json lists languages: leave DST out")
    for flag in ("init_from", "seed"):
        if getattr(args, flag) is not None and not args.add:
            raise XlmfamError(f"--{flag.replace('_', '-')} needs --add: it is for new languages")


def _listed(args: argparse.Namespace) -> str:
    """Return the languages of SRC as text."""
    from xlmfam.common.configs import AutoConfig
    from xlmfam.common.errors import XlmfamError

    config = AutoConfig.from_pretrained(args.source, **hub_options(args))
    languages = getattr(config, "lang2id", None) or {}
    count = max(len(languages), getattr(config, "n_langs", 0))
    if not languages and not getattr(config, "uses_languages", False):
        raise XlmfamError(f"{args.source} ({config.model_type}) does not go by languages")
    default = getattr(config, "default_language", None)
    if args.json:
        found = {"family": config.model_type, "languages": languages, "default": default}
        return json.dumps({"source": args.source, **found}, indent=2, ensure_ascii=False)
    lines = [f"{args.source}: {count} {'language' if count == 1 else 'languages'}"]
    for code in sorted(languages, key=lambda name: (languages[name], name)):
        lines.append(f"{languages[code]:4}  {code}{'  (default)' if code == default else ''}")
    return "\n".join([*lines, *_remarks(config, languages)])


def _remarks(config: Any, languages: dict[str, int]) -> list[str]:
    """Return what else there is to say of a checkpoint's languages."""
    from xlmfam.common.parameters import table_of

    if not languages:
        return [f"They have no names; their ids are 0 to {config.n_langs - 1}."]
    if not config.uses_languages:
        return ["The tokenizer goes by them, the model does not."]
    table = table_of(config.model_type)
    parameters = table.expand(config, table.base).values()
    sizes = [p.size for p in parameters if p.language == next(iter(languages))]
    return [f"Each has adapters of {sum(sizes):,} parameters."] if sizes else []


def _changed(args: argparse.Namespace) -> str:
    """Write DST; return what became of the languages."""
    from xlmfam.common.configs import AutoConfig
    from xlmfam.conversion import change_languages
    from xlmfam.conversion.report import readable_size

    before = AutoConfig.from_pretrained(args.source, **hub_options(args))
    paths = change_languages(
        args.source,
        args.target,
        add=args.add,
        remove=args.remove,
        init_from=args.init_from or "random",
        default_language=args.default,
        seed=args.seed or 0,
        overwrite=args.overwrite,
        **hub_options(args),
    )
    after = AutoConfig.from_pretrained(args.target)
    kept = [code for code in before.languages if code in after.languages]
    lines = [f"{args.source} -> {args.target}", f"  kept     {', '.join(kept)}, bit for bit"]
    if args.add:
        lines.append(f"  new      {', '.join(args.add)}, {_beginning(args.init_from)}")
    if args.remove:
        lines.append(f"  removed  {', '.join(args.remove)}")
    lines.append(f"  default  {after.default_language or 'none: every text must say its language'}")
    size = sum(path.stat().st_size for path in paths)
    return "\n".join([*lines, f"  wrote    {len(paths)} files, {readable_size(size)}"])


def _beginning(init_from: str | None) -> str:
    """Say what new adapters begin as."""
    if init_from in (None, "random"):
        return "to be trained"
    return "as the mean of the others" if init_from == "mean" else f"as {init_from}"
