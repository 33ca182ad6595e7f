"""Options and manners that the commands share."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMATS = ("safetensors", "pt", "tf", "flax")
# What can be written besides.
TARGETS = ("orbax", "keras", "savedmodel", "onnx", "original")
# What can be read besides.
RELEASES = ("xlm", "fairseq-xglm", "fairseq-xmod", "transfo-xl", "transfo-xl-tf1")
# Written by training programs, and read.
TRAINED = ("orbax", "keras")
BACKENDS = ("pt", "tf", "flax")


def new_command(
    subparsers: Any, name: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command with a help text that keeps its lines and ends in examples."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint to read."""
    parser.add_argument(
        "source", metavar="SRC", help="folder, file of weights, or hub id (facebook/xglm-564M)"
    )


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where on the hub to look."""
    group = parser.add_argument_group("hub options")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit")
    group.add_argument("--token", help="access token (default: the one `hf auth login` stored)")
    group.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept")
    group.add_argument("--subfolder", metavar="DIR", help="folder inside the repository")
    group.add_argument(
        "--local-files-only", action="store_true", help="use only what is in the cache already"
    )


def hub_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the hub options that were given."""
    names = ("revision", "token", "cache_dir", "subfolder")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return {**given, "local_files_only": True} if args.local_files_only else given


def add_class_option(parser: argparse.ArgumentParser) -> None:
    """Add the class of the checkpoint."""
    parser.add_argument(
        "--class",
        dest="head",
        metavar="NAME",
        help="class of the checkpoint, e.g. XGLMModel, where config.json does not say",
    )


def add_backend_option(parser: argparse.ArgumentParser) -> None:
    """Add the framework to run in."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="pt (PyTorch), tf (TensorFlow) or flax (default: the first that is installed)",
    )


def add_lang_option(parser: argparse.ArgumentParser) -> None:
    """Add the language of the text, or one for each of several texts."""
    parser.add_argument(
        "--lang",
        type=split_list,
        metavar="CODE",
        help="language of the text, for models that go by it: de (XLM), de_DE (X-MOD) ...; for "
        "several texts one for all or, with commas between, one for each",
    )


class _Codes(argparse.Action):
    """Collects words, and what stands between commas in them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:  # noqa: ARG002
        codes = [code for value in values for code in split_list(value)]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *codes])


def add_languages_option(parser: argparse.ArgumentParser, flag: str, summary: str) -> None:
    """Add an option that takes the codes of languages."""
    parser.add_argument(flag, nargs="+", action=_Codes, default=[], metavar="CODE", help=summary)


def chosen_backend(args: argparse.Namespace, command: str) -> str:
    """Return the backend that was asked for, or the first that is installed.

    Raises:
        MissingPackageError: Where it is not installed, or none is.
    """
    from xlmfam.common.errors import MissingPackageError
    from xlmfam.conversion.runners import installed_backends, require_backend

    if args.backend:
        require_backend(args.backend)
        return args.backend
    installed = installed_backends()
    if not installed:
        raise MissingPackageError("torch", command, 'pip install "xlmfam[pt]" (or [tf], or [flax])')
    return installed[0]


def load_tokenizer(args: argparse.Namespace, command: str) -> Any:
    """Return the tokenizer that lies beside the checkpoint.

    Raises:
        XlmfamError: Where there is none.
    """
    from xlmfam import AutoTokenizer
    from xlmfam.common.errors import XlmfamError

    path = Path(args.source).expanduser()
    folder = path.parent if path.is_file() else args.source
    try:
        return AutoTokenizer.from_pretrained(folder, **hub_options(args))
    except XlmfamError as error:
        raise XlmfamError(
            f"{args.source} has no tokenizer that can be used, and {command} needs one: {error}"
        ) from error


def load_model(args: argparse.Namespace, backend: str) -> Any:
    """Return the checkpoint as a model of ``backend``, its framework loaded quietly."""
    from xlmfam.conversion.runners import load

    if not args.debug:
        preload([backend])
    return load(backend, args.source, **hub_options(args))


def takes_languages(tokenizer: Any) -> bool:
    """Whether a tokenizer goes by the language of a text."""
    return "lang" in getattr(tokenizer, "call_options", ())


def known_langs(args: argparse.Namespace, tokenizer: Any) -> list[str] | None:
    """Return the languages of a checkpoint; none where any will do, ``None`` without languages.

    XLM's tokenizer goes by them as well; X-MOD's does not, and its config has them.
    """
    from xlmfam.common.configs import AutoConfig

    if takes_languages(tokenizer):
        return sorted(tokenizer.lang2id or ())
    config = AutoConfig.from_pretrained(args.source, **hub_options(args))
    return list(config.lang2id or ()) if getattr(config, "uses_languages", False) else None


def check_lang(flag: str, lang: str, source: str, known: list[str] | None) -> None:
    """Raise ``XlmfamError`` for a language that a checkpoint does not know.

    Args:
        flag: The option that it was given with.
        lang: Its code.
        source: What the user calls the checkpoint.
        known: See `known_langs`.
    """
    from xlmfam.common.errors import XlmfamError

    if known is None:
        raise XlmfamError(f"{flag} {lang}: {source} does not go by languages")
    if known and lang not in known:
        raise XlmfamError(f"{flag} {lang}: {source} knows {', '.join(known)}")


def chosen_langs(args: argparse.Namespace, tokenizer: Any, texts: int) -> str | list[str] | None:
    """Return the language of all texts or a list with one for each, as ``--lang`` says.

    Args:
        args: With ``lang`` and ``source``.
        tokenizer: Of the checkpoint.
        texts: Number of texts.

    Raises:
        XlmfamError: For a language that is not known, another number of them than of texts, and
            none where there is no default.
    """
    from xlmfam.common.configs import AutoConfig
    from xlmfam.common.errors import XlmfamError

    known = None if args.lang is None else known_langs(args, tokenizer)
    for lang in args.lang or ():
        check_lang("--lang", lang, args.source, known)
    if args.lang and len(args.lang) not in (1, texts):
        raise XlmfamError(
            f"--lang names {len(args.lang)} languages for {texts} text{'s' if texts > 1 else ''}; "
            "give one for all, or one for each"
        )
    if args.lang:
        return args.lang[0] if len(args.lang) == 1 else args.lang
    config = AutoConfig.from_pretrained(args.source, **hub_options(args))
    if getattr(config, "default_language", "") is None:
        known = list(config.lang2id)
        raise XlmfamError(
            f"{args.source} has no default language: say --lang, one of {', '.join(known)}"
        )
    return None


def require_method(model: Any, method: str, command: str, wanted: str) -> None:
    """Raise ``XlmfamError`` unless ``model`` can do what ``command`` needs."""
    from xlmfam.common.errors import XlmfamError

    if not hasattr(model, method):
        raise XlmfamError(f"{command} needs {wanted}; this is {model.table_class}")


def split_list(text: str) -> list[str]:
    """Return the parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def positive_int(text: str) -> int:
    """Parse a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def quiet_frameworks() -> None:
    """Silence what TensorFlow and JAX say on start; must run before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("tensorflow", "absl", "jax._src.xla_bridge", "h5py"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(tensorflow|keras|jax|flax)\b")


def preload(backends: Iterable[str]) -> None:
    """Import the frameworks of backends, without the words that TensorFlow's own code writes.

    It does not listen to its environment variables until it is loaded, so what it writes to the
    file descriptor is dropped meanwhile. Torch comes first, see `runner_of`.
    """
    from xlmfam.conversion.runners import PACKAGES, installed_backends

    for backend in installed_backends():
        if backend in backends:
            with _muted_descriptor(2):
                importlib.import_module(PACKAGES[backend])


@contextmanager
def _muted_descriptor(number: int) -> Iterator[None]:
    sys.stderr.flush()
    kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(nowhere)


def note(text: str) -> None:
    """Tell a person something that is no result: on standard error."""
    print(text, file=sys.stderr, flush=True)
