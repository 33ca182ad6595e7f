"""Translating with XLM: the options of a search, and text in, text out.

Shapes: B texts, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import known_languages, language_id

DEFAULT_LENGTH = 200


@dataclass(frozen=True)
class Translation:
    """The options of one call, checked; hashable, so that loops compile per plan.

    ``max_length`` counts the end tokens at both ends.
    """

    target_lang: int | None
    max_length: int
    num_beams: int
    length_penalty: float
    early_stopping: bool
    eos_token_id: int
    pad_token_id: int


def check_translation(
    config: Any,
    target_lang: str | int | None,
    max_length: int | None,
    num_beams: int,
    length_penalty: float,
    early_stopping: bool,
) -> Translation:
    """Return the options of a search, see the model's ``generate``.

    Raises:
        XlmfamError: Naming what cannot be.
    """
    if target_lang is None and config.uses_languages:
        raise XlmfamError(
            f"target_lang says what to translate into; this model knows {known_languages(config)}"
        )
    limit = config.max_position_embeddings + 1  # the last token is not read again
    if max_length is None:
        max_length = min(DEFAULT_LENGTH, limit)
    if not 2 <= max_length <= limit:
        raise XlmfamError(
            f"max_length counts the end tokens at both ends and must lie in [2, {limit}], "
            f"got {max_length}"
        )
    if not 1 <= num_beams <= config.vocab_size:
        raise XlmfamError(f"num_beams must lie in [1, {config.vocab_size}], got {num_beams}")
    return Translation(
        target_lang=None if target_lang is None else language_id(config, target_lang),
        max_length=max_length,
        num_beams=num_beams,
        length_penalty=float(length_penalty),
        early_stopping=bool(early_stopping),
        eos_token_id=config.eos_index,
        pad_token_id=config.pad_index,
    )


class TranslationMixin:
    """Gives ``translate`` to a model whose ``generate`` takes and returns ids."""

    config: Any

    def translate(
        self,
        text: str | Sequence[str],
        tokenizer: Any,
        source_lang: str | int | None = None,
        target_lang: str | int | None = None,
        **options: Any,
    ) -> Any:
        """Translate a text, or several.

        Args:
            text: The text, or several.
            tokenizer: Of this model.
            source_lang: Language of the texts, by name or id.
            target_lang: Language to translate into.
            **options: Of ``generate``.

        Returns:
            The translation, or a list of them.

        Raises:
            XlmfamError: For an unknown language, and see ``generate``.
        """
        texts = [text] if isinstance(text, str) else list(text)
        by_name = {"lang": source_lang} if isinstance(source_lang, str) else {}
        rows = tokenizer(texts, add_special_tokens=False, **by_name)["input_ids"]
        ids, mask = self._wrapped(rows)
        output = self.generate_ids(ids, mask, source_lang, target_lang=target_lang, **options)
        found = [tokenizer.decode(row, skip_special_tokens=True) for row in output]
        return found[0] if isinstance(text, str) else found

    def generate_ids(self, input_ids: Any, attention_mask: Any, langs: Any, **options: Any) -> Any:
        """Call ``generate`` with (B, S) NumPy arrays; return lists of ids."""
        raise NotImplementedError

    def _wrapped(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return (B, S) ids with an end token at both ends, as the original has, and a mask."""
        longest = max(len(row) for row in rows) + 2
        ids = np.full((len(rows), longest), self.config.pad_index)
        for number, row in enumerate(rows):
            ids[number, : len(row) + 2] = [self.config.eos_index, *row, self.config.eos_index]
        mask = np.arange(longest) < np.array([[len(row) + 2] for row in rows])
        return ids, mask.astype(np.int64)
