"""A language for every token, in models that know only one for each sample.

A layer's adapter acts on every token by itself and comes after attention. So a layer, run once for
each language on the same input, gives the output of every token in every language, and the right
one can be picked token by token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def languages(model: torch.nn.Module, langs: torch.Tensor) -> Iterator[None]:
    """Let the model's calls have `langs`: (rows, queries), rows as the layers see them."""
    before = model.config.default_language
    model.config.default_language = model.config.languages[0]

    def pick(layer: torch.nn.Module, args: tuple, kwargs: dict, output: tuple) -> tuple:
        states = output[0]
        wanted = langs.expand(states.shape[:2])
        mixed = torch.zeros_like(states)
        for language in wanted.unique().tolist():
            told = tuple(_told(value, language) for value in args)
            named = {key: _told(value, language) for key, value in kwargs.items()}
            chosen = (wanted == language)[..., None]
            mixed = torch.where(chosen, layer.forward(*told, **named)[0], mixed)
        return (mixed, *output[1:])

    base = getattr(model, "roberta", model)
    hooks = [layer.register_forward_hook(pick, with_kwargs=True) for layer in base.encoder.layer]
    try:
        yield
    finally:
        model.config.default_language = before
        for hook in hooks:
            hook.remove()


def _told(value: object, language: int) -> object:
    """The languages of the samples are the only flat tensor that a layer is given."""
    if isinstance(value, torch.Tensor) and value.dim() == 1:
        return torch.full(value.shape, language)
    return value


def check(model: torch.nn.Module, ids: torch.Tensor) -> None:
    """Where all tokens of a sample have one language, the model itself says the same."""
    langs = torch.arange(len(ids)).flip(0) % len(model.config.languages)
    with torch.no_grad():
        expected = model(ids, lang_ids=langs)[0]
        with languages(model, langs[:, None]):
            torch.testing.assert_close(model(ids)[0], expected)
