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
from typing import Any

FORMATS = ("safetensors", "pt", "tf", "flax")
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
