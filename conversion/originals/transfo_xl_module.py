"""What a file of kimiyoung's PyTorch code holds: a whole pickled model, or its tensors by name.

The model is not made: it is walked through as the file describes it. Every module there has
``_parameters``, ``_buffers`` and ``_modules``, and its settings beside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xlmfam.common.errors import CheckpointError
from xlmfam.common.pickles import Placeholder
from xlmfam.conversion.formats.torch_file import StoredTensor, tensors_of

MODEL = ("mem_transformer", "MemTransformerLM")
# Where training checkpoints keep the tensors, and where what the model was made with.
_STATES = ("model_state", "model_state_dict", "state_dict", "model")
_FLAGS = ("model_config", "args")
# Each of these stands in every language model of this release, and never with a prefix.
_SIGNS = (
    "word_emb.emb_layers.0.weight",
    "crit.out_layers.0.bias",
    "layers.0.pos_ff.CoreNet.0.bias",
)
_DEEPEST = 12
_MOST_MODULES = 20_000  # the largest public model has some hundreds
_WRAPPER = "module."


@dataclass
class Stored:
    """A model as a file has it.

    Attributes:
        tensors: By the original's names.
        flags: What the model was made with, as far as the file says.
        is_whole: The file holds the model and not only its tensors.
    """

    tensors: dict[str, StoredTensor]
    flags: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = False


def stored_model(value: Any) -> Stored | None:
    """Return the model in a file, or ``None`` where it is none of this release.

    Args:
        value: What the file holds (`TorchFile.value`).

    Raises:
        CheckpointError: It is one, and damaged.
    """
    model = _unwrapped(value)
    if model is not None:
        return _whole(model)
    if not isinstance(value, Mapping):
        return None
    for key in (None, *_STATES):
        part = value if key is None else value.get(key)
        inner = _unwrapped(part)
        stored = _whole(inner) if inner is not None else _state(part)
        if stored is not None:
            for flags in (_attributes(value.get(name)) for name in _FLAGS):
                stored.flags = {**flags, **stored.flags}
            return stored
    return None


def _unwrapped(value: Any) -> Placeholder | None:
    """Return the model, also out of what lets several devices work at it."""
    for _ in range(2):
        name = value.made_by.name if _is_object(value) else None
        if name is not None and name[1] == MODEL[1]:
            return value
        modules = _attributes(value).get("_modules")
        value = modules.get("module") if isinstance(modules, dict) else None
    return None


def _is_object(value: Any) -> bool:
    return isinstance(value, Placeholder) and isinstance(value.made_by, Placeholder)


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, or a dict as it is."""
    value = value.state if isinstance(value, Placeholder) else value
    return value if isinstance(value, dict) else {}


def _state(value: Any) -> Stored | None:
    """Return the model of a state dict."""
    tensors = {name.removeprefix(_WRAPPER): t for name, t in tensors_of(value).items()}
    return Stored(tensors) if all(name in tensors for name in _SIGNS) else None


def _whole(model: Placeholder) -> Stored:
    """Return the model of a pickled one."""
    return Stored(dict(_tensors(model, "", itertools.count())), _settings(model), is_whole=True)


def _tensors(
    module: Any, prefix: str, visits: Iterator[int], depth: int = 0
) -> Iterator[tuple[str, StoredTensor]]:
    own = _attributes(module)
    # Modules that stand within each other many times would make more names than memory holds.
    if depth > _DEEPEST or next(visits) > _MOST_MODULES:
        raise CheckpointError(f"{prefix[:80]}: the model in the file is larger than any")
    for group in ("_parameters", "_buffers"):
        for name, tensor in _entries(own, group, prefix):
            if isinstance(tensor, StoredTensor):
                yield f"{prefix}{name}", tensor
            elif tensor is not None:
                raise CheckpointError(f"{prefix}{name} is no tensor: the file is damaged")
    for name, inner in _entries(own, "_modules", prefix):
        if inner is not None:
            yield from _tensors(inner, f"{prefix}{name}.", visits, depth + 1)


def _entries(own: dict[str, Any], group: str, prefix: str) -> list[tuple[str, Any]]:
    found = own.get(group, {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{prefix}{group} holds no names: the file is damaged")
    return list(found.items())


def _settings(model: Placeholder) -> dict[str, Any]:
    """Return what the model and its parts say about themselves, by the names of the flags."""
    own = _attributes(model)
    words, layer = _part(model, "word_emb"), _part(model, "layers", "0")
    attention = _part(layer, "dec_attn")
    flags = {name: value for name, value in own.items() if not name.startswith("_")}
    for name in ("div_val", "cutoffs"):
        if name in words:
            flags[name] = words[name]
    if isinstance(flags.get("cutoffs"), list):
        flags["cutoffs"] = flags["cutoffs"][:-1]  # the last one is the size of the vocabulary
    for name in ("pre_lnorm", "eps"):
        for owner in (attention, _part(attention, "layer_norm")):
            if name in owner:
                flags[name] = owner[name]
    for name, owner in (
        ("dropout", _part(model, "drop")),
        ("dropatt", _part(attention, "dropatt")),
    ):
        if "p" in owner:
            flags[name] = owner["p"]
    return flags


def _part(module: Any, *path: str) -> dict[str, Any]:
    """Return the attributes of a part of a module; none where there is no such part."""
    own = _attributes(module)
    for name in path:
        modules = own.get("_modules")
        own = _attributes(modules.get(name)) if isinstance(modules, dict) else {}
    return own
