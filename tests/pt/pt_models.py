"""Models with random parameters."""

import torch

from xlmfam.common.parameters import Kind


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = model.expected_parameters()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.25
            parameter.copy_(noise + (rows[name].kind is Kind.NORM_SCALE))
    return model.eval()
