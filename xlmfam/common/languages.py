"""Languages by name or id: what callers may give, made into arrays of ids.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from xlmfam.common.errors import XlmfamError


def language_id(config: Any, lang: str | int) -> int:
    """Return the id of a language.

    Args:
        config: Has ``lang2id`` and ``n_langs``.
        lang: Name or id.

    Raises:
        XlmfamError: When there is no such language, with those that there are.
    """
    if not isinstance(lang, str):
        number = int(lang)
        check_language_range(config, number, number)
        return number
    names = config.lang2id
    if not names:
        raise XlmfamError(
            f"the language {lang!r} was given by name, but this model has no lang2id: set "
            f"config.lang2id, or give an id below {config.n_langs}"
        )
    if lang not in names:
        raise XlmfamError(f"unknown language {lang!r}; this model knows {known_languages(config)}")
    return names[lang]


def known_languages(config: Any) -> str:
    """Return the languages' names in the order of their ids, or the range of the ids."""
    if not config.lang2id:
        return f"the ids 0 to {config.n_langs - 1}"
    return ", ".join(sorted(config.lang2id, key=lambda name: (config.lang2id[name], name)))


def check_language_range(config: Any, least: int, most: int, name: str = "langs") -> None:
    """Raise ``XlmfamError`` unless ids between ``least`` and ``most`` are languages.

    Args:
        config: Has ``uses_languages`` and ``n_langs``.
        least: Smallest id.
        most: Largest id.
        name: Of the argument, for the message.
    """
    if config.uses_languages and (least < 0 or most >= config.n_langs):
        wrong = least if least < 0 else most
        raise XlmfamError(
            f"{name} holds {wrong}; this model has {config.n_langs} languages: "
            f"{known_languages(config)}"
        )


def resolve_langs(config: Any, langs: Any) -> Any:
    """Return the ids of languages as an array of two dimensions (or more, if given more).

    Args:
        config: Has ``lang2id`` and ``n_langs``.
        langs: A name or an id for everything; a list or (B,) array with one for each sample; or
            (B, S) ids, one for each token. Lists may hold names.

    Returns:
        (1, 1), (B, 1) or (B, S): a NumPy array, or the framework's own where that came.

    Raises:
        XlmfamError: For an unknown language.
    """
    if langs is None:
        return None
    if isinstance(langs, np.ndarray) and langs.dtype.kind not in "iu":
        langs = langs.tolist()  # names, or what is refused below
    if isinstance(langs, np.integer):
        langs = int(langs)
    if isinstance(langs, str | int):
        return np.full((1, 1), language_id(config, langs))
    if isinstance(langs, list | tuple):
        langs = _as_array(_each(config, langs))
    if not hasattr(langs, "shape"):
        raise XlmfamError(f"langs must be a name, ids, or a list of them, got {langs!r}")
    if len(langs.shape) == 0:
        return langs[None, None]
    return langs[:, None] if len(langs.shape) == 1 else langs


def _each(config: Any, langs: Any) -> Any:
    if isinstance(langs, list | tuple):
        return [_each(config, lang) for lang in langs]
    if isinstance(langs, str):
        return language_id(config, langs)
    try:
        return operator.index(langs)
    except TypeError as error:
        raise XlmfamError(f"langs must hold names or ids, got {langs!r}") from error


def _as_array(ids: list) -> np.ndarray:
    try:
        return np.asarray(ids, np.int64)
    except ValueError as error:
        raise XlmfamError("langs must hold as many ids in every row") from error
