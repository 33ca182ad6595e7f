"""Small models in PyTorch with random parameters."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

sys.path.append(str(Path(__file__).parent))  # for pt_models

import torch
from pt_models import randomise

from xlmfam import XGLMConfig

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
