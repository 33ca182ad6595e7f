"""Tiny checkpoints for the tests of conversion and of the command."""

from __future__ import annotations

import json

import numpy as np

from xlmfam import GenerationConfig, XGLMConfig
from xlmfam.common.checkpoints.models import save_parameters
from xlmfam.common.parameters import table_of

# Every size is different from the others, so that no swapped axis goes unnoticed.
SIZES = {
    "vocab_size": 61,
    "d_model": 12,
    "ffn_dim": 20,
    "num_layers": 2,
    "attention_heads": 3,
    "max_position_embeddings": 32,
}


def make_config(**settings):
    return XGLMConfig(**{**SIZES, **settings})


def make_arrays(config, head="XGLMForCausalLM", seed=0):
    """Random values for every parameter, by canonical name."""
    rng = np.random.default_rng(seed)
    parameters = table_of(config.model_type).expand(config, head)
    return {
        name: rng.normal(0, 0.3, p.shape).astype(np.float32)
        for name, p in parameters.items()
        if p.tied_to is None
    }


def save(folder, arrays, config, head="XGLMForCausalLM", format="safetensors", **kwargs):
    save_parameters(
        folder,
        config,
        head,
        "canonical",
        lambda p: arrays[p.name],
        lambda p: arrays[p.name].dtype,
        format=format,
        **kwargs,
    )
    return folder


def make(folder, head="XGLMForCausalLM", format="safetensors", seed=0, **settings):
    """Write a checkpoint without any framework."""
    config = make_config(**settings)
    options = GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=1)
    arrays = make_arrays(config, head, seed)
    return save(folder, arrays, config, head, format, generation_config=options)


def change_json(path, **values):
    """Change some keys of a JSON file; ``None`` removes one."""
    data = json.loads(path.read_text())
    data.update(values)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
