"""Linear layers whose float32 products on the CPU go through oneDNN.

PyTorch's own float32 products reach less than half of what oneDNN does on many CPUs (AMD's above
all), forward and backward. oneDNN takes the weights as they lie, transposed views included, so
nothing is packed or copied. Everywhere else this is ``torch.nn.functional.linear``.

Shapes: M rows, N outputs, K inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """``nn.Linear``, with the products of this module."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., N) of (..., K)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).
    """
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    learns = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if learns and torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)
    return _product(x, weight, bias)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether both are ordinary float32 CPU tensors, and no compiler or transform looks on."""
    return bool(
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and x.numel()  # oneDNN refuses products over nothing
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """``x @ weight.T + bias`` with a backward pass through the same products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        # Where a graph of the gradient is asked for, only differentiable products will do.
        product = F.linear if torch.is_grad_enabled() else _product
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(rows, weight.t()).view_as(x) if wants_x else None,
            product(rows.t(), inputs.t()) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )
