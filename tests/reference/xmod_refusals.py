"""What the reference refuses, lacks or lets pass where xlmfam does otherwise: names alone.

Of errors only the kind is written down: their messages are the reference's own sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, XmodConfig, XmodModel
from xmod_checkpoints import load

_TINY = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 17,
    "max_position_embeddings": 19,
}


def _attempts(root: Path) -> dict[str, Callable[[], object]]:
    plain, choice, base = load(root, "plain"), load(root, "choice"), load(root, "base")
    ids = torch.arange(4, 18).view(2, 7)
    choices = torch.arange(4, 22).view(1, 3, 6).expand(2, 3, 6)

    def build(**options: object) -> XmodModel:
        return XmodModel(XmodConfig(**_TINY, **options))

    return {
        "languages_by_code": lambda: plain(ids, lang_ids=["en_XX", "de_DE"]),
        "languages_per_token": lambda: plain(ids, lang_ids=torch.zeros_like(ids)),
        "choices_languages_per_sample": lambda: choice(choices, lang_ids=torch.tensor([1, 0])),
        "choices_languages_per_choice": lambda: choice(
            choices, lang_ids=torch.zeros(2, 3, dtype=torch.long)
        ),
        "choices_languages_per_row": lambda: choice(
            choices, lang_ids=torch.zeros(6, dtype=torch.long)
        ),
        "languages_too_few": lambda: plain(ids, lang_ids=torch.tensor([0])),
        "language_beyond_the_last": lambda: plain(ids, lang_ids=torch.tensor([0, 3])),
        "language_below_zero": lambda: plain(ids, lang_ids=torch.tensor([0, -1])),
        "factor_float": lambda: build(adapter_reduction_factor=2.5),
        "factor_whole_float": lambda: build(adapter_reduction_factor=4.0),
        "freezing_the_base": base.freeze_embeddings_and_language_adapters,
        "positions_of_no_kind": lambda: build(position_embedding_type="none"),
        "text_too_long": lambda: plain(torch.full((1, 30), 7)),
        "id_beyond_the_vocabulary": lambda: plain(torch.tensor([[53]])),
    }


def _kind(attempt: Callable[[], object]) -> str | None:
    """The kind of error that an attempt ends in; none where it passes."""
    try:
        with torch.no_grad():
            attempt()
    except Exception as error:
        return type(error).__name__
    return None


def _problem_type(root: Path) -> dict:
    """What the config says before and after a call with integer labels."""
    model = load(root, "sequence")
    before = model.config.problem_type
    model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([3]))
    return {"before": before, "after": model.config.problem_type}


def refusals(root: Path) -> dict:
    """All of it, by name."""
    names = [name for name in dir(transformers) if "Xmod" in name and not name.endswith("Config")]
    own = set(dir(XmodModel)) - set(dir(PreTrainedModel))
    return {
        "errors": {name: _kind(attempt) for name, attempt in _attempts(root).items()},
        "problem_type": _problem_type(root),
        "classes": {
            framework: sorted(name for name in names if name.startswith(prefix))
            for framework, prefix in (("pt", "Xmod"), ("tf", "TFXmod"), ("flax", "FlaxXmod"))
        },
        "methods": sorted(name for name in own if "language" in name),
    }
