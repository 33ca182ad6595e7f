"""What the scripts of several families share: masks, losses, signatures, h5 listings, JSON."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import torch


def write_json(path: Path, value: object) -> None:
    """Readable JSON: one item per line near the top, compact below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_pretty(value, 0) + "\n", encoding="utf-8")


def _pretty(value: object, level: int) -> str:
    compact = json.dumps(value, ensure_ascii=False)
    if len(compact) + level <= 140 or not isinstance(value, (dict, list)):
        return compact
    pad, end = "\n" + " " * (level + 1), "\n" + " " * level
    if isinstance(value, dict):
        rows = [f"{json.dumps(k)}: {_pretty(v, level + 1)}" for k, v in value.items()]
        return "{" + pad + ("," + pad).join(rows) + end + "}"
    if all(isinstance(v, (int, float)) for v in value):
        return compact
    return "[" + pad + ("," + pad).join(_pretty(v, level + 1) for v in value) + end + "]"


def update_json(path: Path, section: dict, order: tuple[str, ...]) -> None:
    """Replace some sections of a JSON file, and keep them in order."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known.update(section)
    write_json(path, {key: known[key] for key in order if key in known})


def left(lengths: list[int], width: int) -> torch.Tensor:
    return torch.tensor([[0] * (width - n) + [1] * n for n in lengths])


def right(lengths: list[int], width: int) -> torch.Tensor:
    return torch.tensor([[1] * n + [0] * (width - n) for n in lengths])


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions that start at each row's first real token; zero at the leading padding."""
    leading = (mask.cumsum(-1) == 0).sum(-1, keepdim=True)
    return (torch.arange(mask.shape[1])[None] - leading).clamp(min=0)


def padded(ids: torch.Tensor, mask: torch.Tensor, pad: int = 1) -> torch.Tensor:
    return torch.where(mask.bool(), ids, torch.full_like(ids, pad))


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the labels under the logits of the same position, without -100."""
    counts = labels != -100
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -(chosen * counts).sum() / counts.sum()


def shifted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the labels under the logits one position earlier, without -100."""
    return mean_loss(logits[:, :-1], labels[:, 1:])


def without_folder_names(folder: Path) -> None:
    """Take the paths of this machine out of written configs."""
    for path in folder.glob("**/config.json"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text(
            "".join(line for line in lines if "_name_or_path" not in line), encoding="utf-8"
        )


def plain_value(value: object) -> object:
    """A default value as JSON can hold it."""
    if value is inspect.Parameter.empty:
        return "<required>"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{getattr(value, '__name__', type(value).__name__)}>"


def signature(function: object) -> list[list[object]]:
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self":
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            rows.append([f"**{name}", None])
        else:
            rows.append([name, plain_value(parameter.default)])
    return rows


def _strings(values: object) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def h5_listing(path: Path) -> dict:
    """Names, shapes, groups and attributes of a `tf_model.h5`."""
    import h5py

    with h5py.File(path, "r") as file:
        shapes, repeated, instances = {}, {}, set()
        for layer in _strings(file.attrs["layer_names"]):
            for name in _strings(file[layer].attrs["weight_names"]):
                instance, key = name.removesuffix(":0").split("/", 1)
                shape = list(file[layer][name].shape)
                instances.add(instance)
                if key.split("/")[0] != layer:  # a tied weight, once more in the group of the head
                    repeated.setdefault(layer, {})[key] = shape
                elif shapes.setdefault(key, shape) is not shape:
                    raise AssertionError(f"{name} stands twice in group {layer}")
        layers = _strings(file.attrs["layer_names"])
        attrs = {
            k: (v if isinstance(v, str) else v.decode())
            for k, v in file.attrs.items()
            if k != "layer_names"
        }
        top = sorted(file.keys())
    (instance,) = instances
    return {
        "shapes": shapes,
        **({"repeated": repeated} if repeated else {}),
        "instance": instance,
        "layer_names": layers,
        "attrs": attrs,
        "groups": top,
    }
