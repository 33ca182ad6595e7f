"""Tiny XGLM checkpoints with every parameter randomised, written by the reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from golden_tools import without_folder_names
from transformers import XGLMConfig, XGLMForCausalLM, XGLMModel

# The sizes inside a config all differ, so that no transposed or swapped axis fits by accident.
_PLAIN = {
    "vocab_size": 61,
    "d_model": 24,
    "ffn_dim": 40,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": 37,
}
_SMALL = {
    "vocab_size": 53,
    "d_model": 20,
    "ffn_dim": 28,
    "num_layers": 2,
    "attention_heads": 5,
    "max_position_embeddings": 31,
}
# An odd width: the sinusoids fill an even number of columns, and one column is left over.
_ODD = {
    "vocab_size": 47,
    "d_model": 21,
    "ffn_dim": 34,
    "num_layers": 2,
    "attention_heads": 3,
    "max_position_embeddings": 29,
}

# LayerDrop and every dropout stand at zero, so that training-mode numbers are comparable too.
_STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}

CONFIGS: dict[str, dict] = {
    "plain": {**_PLAIN, **_STILL},
    "cross": {**_SMALL, **_STILL, "add_cross_attention": True},
    "relu_noscale": {
        **_SMALL,
        **_STILL,
        "num_layers": 3,
        "activation_function": "relu",
        "scale_embedding": False,
    },
    "gelu_new": {**_ODD, **_STILL, "activation_function": "gelu_new"},
    "untied": {**_SMALL, **_STILL, "activation_function": "silu", "tie_word_embeddings": False},
}
_SEEDS = {"plain": 11, "cross": 12, "relu_noscale": 13, "gelu_new": 14, "untied": 15}

# The untied checkpoint is the one that generates: a sharp head that leans to the end token.
_HEAD_STD = 0.7
_EOS_LEAN = 0.45


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter from one seeded generator, in the order of the sorted names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm.weight" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif name == "lm_head.weight":
                parameter.copy_(_HEAD_STD * noise)
            elif "q_proj" in name or "k_proj" in name:
                parameter.copy_(0.4 * noise)
            else:
                parameter.copy_(0.3 * noise)


def build(case: str) -> XGLMForCausalLM:
    """The model of one case, in evaluation mode."""
    model = XGLMForCausalLM(XGLMConfig(**CONFIGS[case])).eval()
    randomise(model, _SEEDS[case])
    if case == "untied":
        with torch.no_grad():
            shift = model.model.layer_norm.bias
            model.lm_head.weight[model.config.eos_token_id] += (
                _EOS_LEAN * shift / shift.norm() * shift.numel() ** 0.5
            )
    return model


def write_checkpoints(root: Path) -> None:
    for case in CONFIGS:
        folder = root / case
        folder.mkdir(parents=True, exist_ok=True)
        build(case).save_pretrained(folder, safe_serialization=True)


def write_formats(root: Path) -> None:
    """The `plain` weights in every file format that the reference writes."""
    from transformers import FlaxXGLMForCausalLM, TFXGLMForCausalLM

    folder = root / "plain_formats"
    shutil.rmtree(folder, ignore_errors=True)
    model = build("plain")
    plain = str(root / "plain")
    model.save_pretrained(folder / "pt", safe_serialization=False)
    model.save_pretrained(folder / "sharded_pt", safe_serialization=False, max_shard_size="22KB")
    model.save_pretrained(
        folder / "sharded_safetensors", safe_serialization=True, max_shard_size="22KB"
    )
    model.model.save_pretrained(folder / "base_safetensors", safe_serialization=True)
    TFXGLMForCausalLM.from_pretrained(plain, from_pt=True).save_pretrained(folder / "tf")
    FlaxXGLMForCausalLM.from_pretrained(plain, from_pt=True).save_pretrained(folder / "flax")
    without_folder_names(folder)


def load(root: Path, case: str, base: bool = False) -> torch.nn.Module:
    """A written checkpoint, read back by the reference."""
    return (XGLMModel if base else XGLMForCausalLM).from_pretrained(root / case).eval()
