"""Tiny X-MOD checkpoints with every parameter randomised, written by the reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers
from golden_tools import without_folder_names
from transformers import XmodConfig

# Every dropout stands at zero, so that training-mode numbers are comparable too.
_STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# The sizes inside a config all differ, so that no transposed or swapped axis fits by accident.
_PLAIN = {
    **_STILL,
    "vocab_size": 53,
    "hidden_size": 20,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "intermediate_size": 33,
    "max_position_embeddings": 31,
    "type_vocab_size": 6,
    "languages": ["en_XX", "de_DE", "sw_KE"],
    "default_language": "de_DE",
}
# As wide in the adapters as 18 // 4, which has a remainder.
_CAUSAL = {
    **_STILL,
    "vocab_size": 43,
    "hidden_size": 18,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "intermediate_size": 25,
    "max_position_embeddings": 37,
    "type_vocab_size": 1,
    "adapter_reduction_factor": 4,
    "languages": ["ar_AR", "bg_BG", "fr_XX", "zh_CN", "en_XX"],
    "default_language": "fr_XX",
    "is_decoder": True,
    "tie_word_embeddings": False,
}
_SMALL = {
    **_STILL,
    "vocab_size": 23,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 17,
    "max_position_embeddings": 19,
    "type_vocab_size": 2,
    "languages": ["en_XX", "de_DE", "sw_KE"],
    "layer_norm_eps": 1e-5,
}
_HEAD = {**_SMALL, "num_hidden_layers": 1, "default_language": "en_XX"}
_CROSS = {**_SMALL, "is_decoder": True, "add_cross_attention": True, "default_language": "sw_KE"}
_MASKED, _NEXT = "XmodForMaskedLM", "XmodForCausalLM"

# Folder: the class it is written from, its options, its seed.
CHECKPOINTS: dict[str, tuple[str, dict, int]] = {
    "plain": (_MASKED, _PLAIN, 41),
    "causal": (_NEXT, _CAUSAL, 142),
    "cross": (_NEXT, {**_CROSS, "pre_norm": True}, 43),
    "relative_key": (_MASKED, {**_SMALL, "position_embedding_type": "relative_key"}, 44),
    "relative_key_query": (
        _NEXT,
        {**_CROSS, "position_embedding_type": "relative_key_query"},
        45,
    ),
    # The four sets of parameters that the norms of the adapters can have; the calls vary the rest.
    "post_norm": (_MASKED, _SMALL, 46),
    "post_norm_own": (_MASKED, {**_SMALL, "adapter_layer_norm": True}, 47),
    "pre_norm": (_MASKED, {**_SMALL, "pre_norm": True}, 48),
    "pre_norm_own": (_MASKED, {**_SMALL, "pre_norm": True, "adapter_layer_norm": True}, 49),
    "base": ("XmodModel", {**_HEAD, "adapter_reduction_factor": 5}, 50),
    # A factor that is not whole: 12 // 2.5 is 4.
    "sequence": (
        "XmodForSequenceClassification",
        {**_HEAD, "num_labels": 7, "adapter_reduction_factor": 2.5, "classifier_dropout": 0.0},
        51,
    ),
    "sequence_one": ("XmodForSequenceClassification", {**_HEAD, "num_labels": 1}, 52),
    "choice": ("XmodForMultipleChoice", _HEAD, 53),
    "token": ("XmodForTokenClassification", {**_HEAD, "num_labels": 7}, 54),
    "span": ("XmodForQuestionAnswering", _HEAD, 55),
}
NORMS = ("post_norm", "post_norm_own", "pre_norm", "pre_norm_own")

# The causal checkpoint is the one that generates: it leans to the end token and never pads.
# Its head is not tied, as a tied one mostly repeats the last token.
_EOS_LEAN, _PAD_LEAN = 4.5, -9.0


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
            elif "embedding" in name:
                parameter.copy_(0.6 * noise)
            elif "query" in name or "key" in name:
                parameter.copy_(0.45 * noise)
            elif "adapter" in name:  # large enough for the language to matter
                parameter.copy_(0.5 * noise)
            elif "encoder" in name:
                parameter.copy_(0.3 * noise)
            else:  # heads
                parameter.copy_(0.5 * noise)


class _Factor(float):
    """A factor whose quotients are whole: with a plain float the reference cannot build a model."""

    def __rfloordiv__(self, other: int) -> int:
        return int(other // float(self))


def buildable(options: dict) -> dict:
    """The options with a factor that the reference can build with."""
    factor = options.get("adapter_reduction_factor")
    if isinstance(factor, float):
        return {**options, "adapter_reduction_factor": _Factor(factor)}
    return options


def build(case: str) -> torch.nn.Module:
    """The model of one case, in evaluation mode."""
    cls, options, seed = CHECKPOINTS[case]
    model = getattr(transformers, cls)(XmodConfig(**buildable(options))).eval()
    randomise(model, seed)
    if case == "causal":
        with torch.no_grad():
            model.lm_head.bias[model.config.eos_token_id] += _EOS_LEAN
            model.lm_head.bias[model.config.pad_token_id] += _PAD_LEAN
    if "adapter_reduction_factor" in options:
        model.config.adapter_reduction_factor = options["adapter_reduction_factor"]
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
    model.roberta.save_pretrained(folder / "base_safetensors", safe_serialization=True)
    without_folder_names(folder)


def load(root: Path, case: str, cls: str | None = None, **overrides: object) -> torch.nn.Module:
    """A written checkpoint, read back by the reference."""
    wanted, options, _ = CHECKPOINTS[case]
    factor = {k: v for k, v in options.items() if k == "adapter_reduction_factor"}
    given = buildable({**factor, **overrides})
    model = getattr(transformers, cls or wanted).from_pretrained(root / case, **given)
    return model.eval()
