"""Guessing hidden words with a masked language model: text in, text out.

Shapes: B texts, S tokens, n hidden words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlmfam.common.errors import XlmfamError


class FillMaskMixin:
    """Gives ``fill_mask`` to a model that has ``mask_probabilities``."""

    config: Any

    def mask_probabilities(
        self, input_ids: Any, attention_mask: Any, langs: Any, rows: Any, columns: Any
    ) -> np.ndarray:
        """Return (n, V) probabilities of the words at n positions.

        Args:
            input_ids: (B, S) ids.
            attention_mask: (B, S).
            langs: As in the model's call.
            rows: (n,) text of each position.
            columns: (n,) place of each position.
        """
        raise NotImplementedError

    def fill_mask(
        self,
        text: str | Sequence[str],
        tokenizer: Any,
        top_k: int = 5,
        lang: str | int | Sequence[str | int] | None = None,
    ) -> list[Any]:
        """Guess the words that stand hidden behind ``tokenizer.mask_token``.

        Args:
            text: A text with mask tokens in it, or several.
            tokenizer: Of this model.
            top_k: Number of guesses for each mask.
            lang: Language of the texts, or one for each, by name or id; what the model goes by
                where it has languages, and the tokenizer where they are names.

        Returns:
            For one mask, its guesses, best first: dicts of ``score`` (probability), ``token``,
            ``token_str`` and ``sequence``, the text with the guess in it. For a text with several
            masks a list of those, and for several texts a list of what each of them would give.

        Raises:
            XlmfamError: For a causal model, a text without a mask, and an impossible ``top_k``.
        """
        if self.config.is_causal:
            raise XlmfamError("fill_mask needs a masked model; this one is causal: use generate")
        texts = [text] if isinstance(text, str) else list(text)
        if not 1 <= top_k <= self.config.vocab_size:
            raise XlmfamError(f"top_k must lie in [1, {self.config.vocab_size}], got {top_k}")
        batch = tokenizer(texts, padding=True, return_tensors="np", **_language(tokenizer, lang))
        ids, mask = np.asarray(batch["input_ids"]), np.asarray(batch["attention_mask"])
        rows, columns = np.nonzero(ids == tokenizer.mask_token_id)
        for number, shown in enumerate(texts):
            if number not in rows:
                raise XlmfamError(f"no mask token {tokenizer.mask_token!r} in {shown!r}")
        langs = self._langs(lang, len(texts))
        scores = self.mask_probabilities(ids, mask, langs, rows, columns)
        found: list[list[Any]] = [[] for _ in texts]
        for row, column, score in zip(rows, columns, scores, strict=True):
            kept = ids[row][mask[row] == 1]
            found[row].append(
                _guesses(tokenizer, kept, int(column) - _padding(mask[row]), score, top_k)
            )
        results = [guesses[0] if len(guesses) == 1 else guesses for guesses in found]
        return results[0] if isinstance(text, str) else results

    def _langs(self, lang: Any, count: int) -> Any:
        """Return the model's languages of the texts, or ``None`` where it does without."""
        if not self.config.uses_languages:
            return None
        if lang is None:
            lang = self.config.lang_id
        return lang if lang is None or isinstance(lang, str | int) else list(lang)[:count]


def _language(tokenizer: Any, lang: Any) -> dict[str, Any]:
    """Return the tokenizer's argument for the language, where it takes one; ids say nothing."""
    names = [lang] if isinstance(lang, str | int) else list(lang or ())
    if not names or "lang" not in getattr(tokenizer, "call_options", ()):
        return {}
    if not all(isinstance(name, str) for name in names):
        return {}
    return {"lang": lang if isinstance(lang, str) else names}


def _padding(mask: np.ndarray) -> int:
    """Return the number of pads that a row begins with."""
    return int(mask.argmax())


def _guesses(tokenizer: Any, ids: np.ndarray, place: int, scores: np.ndarray, top_k: int):
    """Return the best guesses for one place of a text without padding."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    guesses = []
    for token in best.tolist():
        filled = [*ids[:place].tolist(), token, *ids[place + 1 :].tolist()]
        guesses.append(
            {
                "score": float(scores[token]),
                "token": token,
                "token_str": tokenizer.decode([token]),
                "sequence": tokenizer.decode(filled, skip_special_tokens=True),
            }
        )
    return guesses
