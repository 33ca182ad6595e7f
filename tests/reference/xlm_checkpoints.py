"""Tiny XLM checkpoints with every parameter randomised, written by the reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers
from golden_tools import without_folder_names
from transformers import XLMConfig

# Every dropout stands at zero, so that training-mode numbers are comparable too.
_STILL = {"dropout": 0.0, "attention_dropout": 0.0, "summary_first_dropout": 0.0}
# The sizes inside a config all differ, so that no transposed or swapped axis fits by accident.
_PLAIN = {
    **_STILL,
    "vocab_size": 53,
    "emb_dim": 20,
    "n_heads": 5,
    "n_layers": 2,
    "max_position_embeddings": 31,
    "n_langs": 3,
    "lang2id": {"de": 0, "en": 1, "ro": 2},
    "id2lang": {"0": "de", "1": "en", "2": "ro"},
}
# An odd width: the sinusoids have one more sin column than cos columns.
_SMALL = {
    **_STILL,
    "vocab_size": 47,
    "emb_dim": 15,
    "n_heads": 5,
    "n_layers": 2,
    "max_position_embeddings": 29,
    "n_langs": 4,
}
_ONE_LAYER = {**_SMALL, "n_layers": 1}
_CAUSAL = {
    **_STILL,
    "vocab_size": 43,
    "emb_dim": 18,
    "n_heads": 6,
    "n_layers": 2,
    "max_position_embeddings": 37,
    "n_langs": 4,
    "causal": True,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "lang2id": {"ar": 0, "bg": 1, "fr": 2, "zh": 3},
    "id2lang": {"0": "ar", "1": "bg", "2": "fr", "3": "zh"},
}
_LM, _SEQUENCE, _CHOICE = (
    "XLMWithLMHeadModel",
    "XLMForSequenceClassification",
    "XLMForMultipleChoice",
)

# Folder: the class it is written from, its options, its seed.
CHECKPOINTS: dict[str, tuple[str, dict, int]] = {
    "plain": (_LM, _PLAIN, 21),
    "causal": (_LM, _CAUSAL, 22),
    # One language, relu, sinusoids, an untied head, another epsilon.
    "single": (
        _LM,
        {
            **_SMALL,
            "n_langs": 1,
            "gelu_activation": False,
            "sinusoidal_embeddings": True,
            "tie_word_embeddings": False,
            "layer_norm_eps": 1e-3,
        },
        23,
    ),
    "asm": (_LM, {**_SMALL, "asm": True, "asm_cutoffs": [11, 29], "asm_div_value": 2.0}, 24),
    "sequence": (_SEQUENCE, {**_SMALL, "num_labels": 6}, 25),
    "sequence_one": (_SEQUENCE, {**_ONE_LAYER, "num_labels": 1}, 26),
    "sequence_hidden": (
        _SEQUENCE,
        {**_ONE_LAYER, "num_labels": 15, "summary_proj_to_labels": False},
        27,
    ),
    "sequence_bare": (_SEQUENCE, {**_ONE_LAYER, "num_labels": 15, "summary_use_proj": False}, 28),
    "choice": (_CHOICE, {**_ONE_LAYER, "num_labels": 7}, 29),
    "token": ("XLMForTokenClassification", {**_ONE_LAYER, "num_labels": 7}, 30),
    "span": ("XLMForQuestionAnsweringSimple", {**_ONE_LAYER, "num_labels": 2}, 31),
    "beam_span": ("XLMForQuestionAnswering", {**_SMALL, "start_n_top": 3, "end_n_top": 2}, 32),
}

# The causal checkpoint is the one that generates: a sharp head that leans to the end token.
_HEAD_STD = 0.7
_EOS_LEAN = 1.0


def sinusoids(rows: int, width: int) -> torch.Tensor:
    """Sin at the even columns, cos at the odd ones; a pair of columns shares its frequency."""
    pair = torch.arange(width, dtype=torch.float64) // 2
    angles = torch.arange(rows, dtype=torch.float64)[:, None] / 10000 ** (2 * pair / width)
    even = torch.arange(width) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter from one seeded generator, in the order of the sorted names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embeddings" in name:
                parameter.copy_(0.6 * noise)
            elif "q_lin" in name or "k_lin" in name:
                parameter.copy_(0.45 * noise)
            elif "transformer" in name or name.startswith("logits_proj"):
                parameter.copy_(0.3 * noise)
            else:  # heads
                parameter.copy_(0.5 * noise)


def build(case: str) -> torch.nn.Module:
    """The model of one case, in evaluation mode."""
    cls, options, seed = CHECKPOINTS[case]
    config = XLMConfig(**options)
    with torch.no_grad():  # the reference cannot build a sinusoidal model otherwise
        model = getattr(transformers, cls)(config).eval()
        randomise(model, seed)
        if config.sinusoidal_embeddings:  # its own table is overwritten by the initialisation
            table = model.transformer.position_embeddings.weight
            table.copy_(sinusoids(*table.shape))
        if case == "causal":
            head = model.pred_layer.proj
            shift = model.transformer.layer_norm2[-1].bias
            head.weight.mul_(_HEAD_STD / 0.5)
            lean = shift / shift.norm() * shift.numel() ** 0.5
            head.weight[config.eos_token_id] += _EOS_LEAN * lean
    return model


def write_checkpoints(root: Path) -> None:
    for case in CHECKPOINTS:
        folder = root / case
        folder.mkdir(parents=True, exist_ok=True)
        build(case).save_pretrained(folder, safe_serialization=True)


def write_formats(root: Path) -> None:
    """The `plain` weights in the file formats that the reference writes."""
    folder = root / "plain_formats"
    shutil.rmtree(folder, ignore_errors=True)
    model = build("plain")
    model.save_pretrained(folder / "pt", safe_serialization=False)
    model.save_pretrained(
        folder / "sharded_safetensors", safe_serialization=True, max_shard_size="22KB"
    )
    model.transformer.save_pretrained(folder / "base_safetensors", safe_serialization=True)
    tf = transformers.TFXLMWithLMHeadModel.from_pretrained(str(root / "plain"), from_pt=True)
    tf.save_pretrained(folder / "tf")
    without_folder_names(folder)


def load(root: Path, case: str, cls: str | None = None, **overrides: object) -> torch.nn.Module:
    """A written checkpoint, read back by the reference."""
    cls = cls or CHECKPOINTS[case][0]
    with torch.no_grad():
        model = getattr(transformers, cls).from_pretrained(root / case, **overrides).eval()
        if model.config.sinusoidal_embeddings:
            table = model.transformer.position_embeddings.weight
            torch.testing.assert_close(table.data, sinusoids(*table.shape))
    return model
