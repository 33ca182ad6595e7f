"""Words of languages that are written without spaces: Chinese, Thai and Japanese.

Each needs a package of its own, which is imported when the language first comes up.
"""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from xlmfam.common.errors import CheckpointError, MissingPackageError

KYTEA_VARIABLE = "XLMFAM_KYTEA_MODEL"
# Where transformers looks for it, and nowhere else.
KYTEA_DEFAULT = Path("~/local/share/kytea/model.bin")

_HOW_TO_GET_A_MODEL = (
    "the source package of KyTea (http://www.phontron.com/kytea) has one, data/model.bin; then "
    "pass kytea_model=PATH to the tokenizer, set the environment variable "
    f"{KYTEA_VARIABLE}=PATH, or put it at {KYTEA_DEFAULT}"
)


def _import(module: str, package: str, lang: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = f"pip install {package} (or pip install 'xlmfam[{lang}]')"
        raise MissingPackageError(package, f"tokenizing with lang={lang!r}", install) from error


def split_chinese(text: str) -> list[str]:
    """Return the words that jieba finds; white space is among them."""
    return list(_import("jieba", "jieba", "zh").cut(text))


def split_thai(text: str) -> list[str]:
    """Return the words that pythainlp finds; white space is among them."""
    return list(_import("pythainlp.tokenize", "pythainlp", "th").word_tokenize(text))


def split_japanese(text: str, model: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the words that KyTea finds.

    Args:
        text: The text.
        model: KyTea's model file; see `kytea_model_path`.
    """
    _import("Mykytea", "kytea", "ja")  # before a model is asked for: it is of no use without
    return list(_kytea(kytea_model_path(model)).getWS(text))


def kytea_model_path(model: str | os.PathLike[str] | None = None) -> str:
    """Return where KyTea's model is: as given, by the environment, or at its usual place.

    Raises:
        CheckpointError: there is no file; the message says how to get one.
    """
    if model is not None:
        path, source = Path(model), f"kytea_model={os.fspath(model)!r}"
    elif os.environ.get(KYTEA_VARIABLE):
        path = Path(os.environ[KYTEA_VARIABLE])
        source = f"{KYTEA_VARIABLE}={os.fspath(path)!r}"
    else:
        path, source = KYTEA_DEFAULT, f"the usual place, {KYTEA_DEFAULT},"
    path = path.expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"lang='ja' needs a model of KyTea, and {source} is no file: {_HOW_TO_GET_A_MODEL}"
        )
    return str(path)


@lru_cache(maxsize=4)
def _kytea(path: str) -> Any:
    module = _import("Mykytea", "kytea", "ja")
    try:
        # The argument is a command line, taken apart at its spaces.
        return module.Mykytea(f"-model {_without_spaces(path)}")
    except RuntimeError as error:
        raise CheckpointError(f"KyTea cannot read {path}: {error}") from error


def _without_spaces(path: str) -> str:
    if not any(c.isspace() for c in path):
        return path
    relative = os.path.relpath(path)
    if not any(c.isspace() for c in relative):
        return relative
    raise CheckpointError(f"KyTea takes no path with spaces, and its model is {path!r}: move it")
