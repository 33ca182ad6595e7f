"""Small models in PyTorch with random parameters."""

import pytest

pytest.importorskip("torch")

import torch

from xlmfam import XGLMConfig
from xlmfam.common.parameters import Kind

SIZES = {
    "vocab_size": 53,
    "d_model": 24,
    "ffn_dim": 40,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": 37,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = model.expected_parameters()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.25
            parameter.copy_(noise + (rows[name].kind is Kind.NORM_SCALE))
    return model.eval()


@pytest.fixture
def config():
    """Make a config."""
    return lambda **options: XGLMConfig(**{**SIZES, **options})


@pytest.fixture
def make(config):
    """Make a model of a class with random parameters, in evaluation mode."""
    from xlmfam import pt

    def build(class_name="XGLMForCausalLM", seed=0, **options):
        return randomise(getattr(pt, class_name)(config(**options)), seed)

    return build


@pytest.fixture
def ids():
    """Two rows of seven ids, none of them special."""
    return torch.randint(4, 53, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def left_padded(ids):
    """Ids and mask, the second row shorter by three."""
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
