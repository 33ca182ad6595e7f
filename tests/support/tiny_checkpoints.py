"""Tiny checkpoints for the tests of conversion and of the command."""

from __future__ import annotations

import json

import numpy as np

from xlmfam import AutoConfig, GenerationConfig
from xlmfam.common.checkpoints.models import save_parameters
from xlmfam.common.parameters import TABLES, table_of
from xlmfam.common.positions import interleaved_sinusoids

# Every size is different from the others, so that no swapped axis goes unnoticed.
SIZES = {
    "xglm": {
        "vocab_size": 61,
        "d_model": 12,
        "ffn_dim": 20,
        "num_layers": 2,
        "attention_heads": 3,
        "max_position_embeddings": 32,
    },
    "xlm": {
        "vocab_size": 53,
        "emb_dim": 20,
        "n_layers": 2,
        "n_heads": 5,
        "n_langs": 3,
        "max_position_embeddings": 31,
        "num_labels": 7,
        "start_n_top": 4,
        "end_n_top": 6,
    },
    "xmod": {
        "vocab_size": 53,
        "hidden_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "intermediate_size": 33,
        "max_position_embeddings": 31,
        "type_vocab_size": 6,
        "languages": ["en_XX", "de_DE", "sw_KE"],
        "num_labels": 7,
    },
    "transfo-xl": {
        "vocab_size": 53,
        "cutoffs": [11, 28],
        "div_val": 2,
        "d_model": 18,
        "d_embed": 12,
        "n_head": 3,
        "d_head": 5,
        "d_inner": 23,
        "n_layer": 2,
        "mem_len": 8,
        "clamp_len": 9,
        "pad_token_id": 2,
        "num_labels": 7,
    },
}
OF_HEAD = {
    "XLMForQuestionAnsweringSimple": {"num_labels": 2},
    "XmodForQuestionAnswering": {"num_labels": 2},
    "XmodForCausalLM": {"is_decoder": True},
}


def make_config(head="XGLMForCausalLM", **settings):
    family = next(name for name in TABLES if head in _classes(name))
    return AutoConfig.for_model(family, **{**SIZES[family], **OF_HEAD.get(head, {}), **settings})


def _classes(family):
    table = table_of(family)
    return (table.base, *table.heads)


def make_arrays(config, head="XGLMForCausalLM", seed=0):
    """Random values for every parameter but sinusoids, by canonical name."""
    rng = np.random.default_rng(seed)
    parameters = table_of(config.model_type).expand(config, head)
    return {name: _array(p, rng) for name, p in parameters.items() if p.tied_to is None}


def _array(parameter, rng):
    if parameter.init == "sinusoids":
        return interleaved_sinusoids(*parameter.shape)
    # Norms about 1: smaller ones would make what lies before them too faint to be seen.
    mean = 1.0 if parameter.init == "ones" else 0.0
    return rng.normal(mean, 0.3, parameter.shape).astype(np.float32)


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
    config = make_config(head, **settings)
    options = GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=1)
    arrays = make_arrays(config, head, seed)
    return save(folder, arrays, config, head, format, generation_config=options)


def change_json(path, **values):
    """Change some keys of a JSON file; ``None`` removes one."""
    data = json.loads(path.read_text())
    data.update(values)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
