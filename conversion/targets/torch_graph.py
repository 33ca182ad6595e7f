"""A PyTorch model as a function of plain tensors, with its memory going in and coming out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import xlmfam.pt
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.targets import Work
from xlmfam.conversion.targets.signatures import Signature
from xlmfam.pt.base import as_tensor
from xlmfam.pt.cache import KeyValueCache, LayerCache


def build(work: Work, dtype: Any) -> nn.Module:
    """Return the PyTorch model with its weights, in evaluation mode.

    Args:
        work: What to build.
        dtype: NumPy dtype of the weights.
    """
    name, _, missing = work.head.partition("(")
    cls = getattr(xlmfam.pt, name, None)
    if cls is None:
        raise CheckpointError(f"{name} is no class of xlmfam.pt, and cannot be exported")
    without = dict.fromkeys(cls.init_arguments, False) if missing else {}
    with torch.device("meta"):
        model = cls(work.config, **without)
    reader = work.reader
    for parameter in reader.names():
        array = reader.read(parameter).astype(dtype, copy=False)
        model._put(parameter, nn.Parameter(as_tensor(array), requires_grad=False))
        if work.progress is not None:
            work.progress(array.nbytes)
    model.tie_weights()
    return model.eval()


class GrownLayer(LayerCache):
    """Keys and values of one layer that are joined to what is new; nothing is written in place."""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, H, T + S, K), twice."""
        self.key = torch.cat([self.key, key], 2)
        self.value = torch.cat([self.value, value], 2)
        return self.key, self.value


class GrownCache(KeyValueCache):
    """A cache as a graph can have it: of tensors that came in, and with those that go out.

    Args:
        tensors: (B, H, T, K), key and value of each layer in turn; T may be 0.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.keys, self.values = list(tensors[::2]), list(tensors[1::2])
        self.length = self.keys[0].shape[2]
        self.grown = [
            GrownLayer(key, value, self.length, [])
            for key, value in zip(self.keys, self.values, strict=True)
        ]

    @property
    def max_length(self) -> int:
        """There is always room."""
        return 1 << 62

    def layer(self, index: int) -> GrownLayer:
        """Return one layer."""
        return self.grown[index]

    def advance(self, tokens: int) -> None:
        """Nothing is to be counted."""

    def tensors(self) -> list[Tensor]:
        """Return (B, H, T + S, K), key and value of each layer in turn."""
        return [tensor for layer in self.grown for tensor in (layer.key, layer.value)]


class Graph(nn.Module):
    """Calls a model with the inputs of a signature, in their order.

    Args:
        model: The model.
        signature: Its inputs.
    """

    def __init__(self, model: nn.Module, signature: Signature):
        super().__init__()
        self.model = model
        self.signature = signature

    def forward(self, inputs: Sequence[Tensor], memory: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs, and then the memory for the next call."""
        return tuple(self.named(inputs, memory).values())

    def named(self, inputs: Sequence[Tensor], memory: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name."""
        names = [each.name for each in self.signature.inputs]
        arguments: dict[str, Any] = dict(zip(names, inputs, strict=True))
        kept: Any = None
        if self.signature.memory_argument is not None:
            kept = list(memory)
            if self.signature.memory_argument != "mems":
                kept = GrownCache(kept)
            arguments[self.signature.memory_argument] = kept
        output = self.model(**arguments, return_dict=True)
        found = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        if isinstance(kept, GrownCache):
            grown = kept.tensors()
        else:
            grown = output.get("mems") if kept is not None else []
        returned = [self.signature.returned(each.name) for each in self.signature.memory]
        return found | dict(zip(returned, grown, strict=True))
