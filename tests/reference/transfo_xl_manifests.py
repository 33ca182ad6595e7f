"""Names, shapes, ties, signatures and config defaults of the reference's Transformer-XL."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from golden_tools import h5_listing, signature
from safetensors import safe_open
from transformers import GenerationConfig, TransfoXLConfig

_TINY = {
    "vocab_size": 53,
    "cutoffs": [11, 28],
    "d_model": 18,
    "d_embed": 12,
    "n_head": 3,
    "d_head": 5,
    "d_inner": 23,
    "div_val": 2,
    "n_layer": 2,
    "mem_len": 7,
    "clamp_len": 9,
    "num_labels": 7,
}
_SHORT = {**_TINY, "n_layer": 1}
_FLAT = {**_SHORT, "div_val": 1}
_WIDE = {**_FLAT, "d_embed": 18}
_FOUR = {**_SHORT, "div_val": 4, "d_embed": 35}
_UNTIED = {"tie_word_embeddings": False}
_OWN_PROJECTIONS = {"proj_share_all_but_first": False}
_BASE, _LM = "TransfoXLModel", "TransfoXLLMHeadModel"
_SEQUENCE = "TransfoXLForSequenceClassification"
_ALL = (_BASE, _LM, _SEQUENCE)
# Name: the options, and the classes that are listed.
VARIANTS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "plain": (_TINY, _ALL),
    "shared_position_biases": ({**_TINY, "untie_r": False}, _ALL),
    "untied": ({**_SHORT, **_UNTIED}, (_LM,)),
    "own_projections": ({**_SHORT, **_OWN_PROJECTIONS}, (_LM,)),
    "untied_own_projections": ({**_SHORT, **_UNTIED, **_OWN_PROJECTIONS}, (_LM,)),
    "some_projections_tied": ({**_SHORT, "tie_projs": [True, False, True]}, (_LM,)),
    "all_projections_tied": ({**_SHORT, "tie_projs": [True, True, True]}, (_LM,)),
    "no_projection_tied": ({**_SHORT, "tie_projs": [False, False, False]}, (_LM,)),
    "pre_norm": ({**_SHORT, "pre_lnorm": True}, (_BASE, _LM)),
    "same_width_divided": ({**_SHORT, "d_embed": 18}, (_BASE, _LM)),
    "no_division": (_FLAT, _ALL),
    "no_division_untied": ({**_FLAT, **_UNTIED}, (_LM,)),
    "no_division_own_projections": ({**_FLAT, **_OWN_PROJECTIONS}, (_LM,)),
    "no_division_same_width": (_WIDE, _ALL),
    "no_division_same_width_untied": ({**_WIDE, **_UNTIED}, (_LM,)),
    "no_division_same_width_own_projections": ({**_WIDE, **_OWN_PROJECTIONS}, (_LM,)),
    "division_by_four": (_FOUR, _ALL),
    "division_by_four_untied": ({**_FOUR, **_UNTIED}, (_LM,)),
    "one_cutoff": ({**_SHORT, "cutoffs": [28]}, (_BASE, _LM)),
    "three_cutoffs": ({**_SHORT, "cutoffs": [9, 22, 37]}, (_BASE, _LM)),
    "three_cutoffs_no_division": ({**_FLAT, "cutoffs": [9, 22, 37]}, (_BASE, _LM)),
    "no_cutoff": ({**_FLAT, "cutoffs": []}, (_BASE, _LM)),
    "no_cutoff_same_width": ({**_WIDE, "cutoffs": []}, (_BASE, _LM)),
    "no_cutoff_divided": ({**_SHORT, "cutoffs": []}, (_BASE, _LM)),
    "sampled": ({**_SHORT, "sample_softmax": 5}, (_BASE, _LM)),
    "no_memory": ({**_SHORT, "mem_len": 0}, (_LM,)),
}
# Arguments that a caller can get wrong, one at a time on top of the smallest options.
_WRONG: list[dict] = [
    {"cutoffs": [28, 11]},
    {"cutoffs": [60]},
    {"cutoffs": [53]},
    {"cutoffs": [11, 11]},
    {"cutoffs": [0, 11]},
    {"div_val": 0},
    {"div_val": 2.0},
    {"div_val": 8},
    {"d_model": 17},
    {"d_model": 0},
    {"d_embed": -1},
    {"d_embed": 2},
    {"n_head": 0},
    {"d_head": 0},
    {"n_layer": 0},
    {"mem_len": -1},
    {"vocab_size": 0},
    {"vocab_size": 20},
    {"attn_type": 1},
    {"adaptive": False},
    {"sample_softmax": 5},
    {"tie_projs": [True]},
    {"tie_projs": [False, True, True, True]},
    {"clamp_len": 0},
    {"same_length": False},
    {"dropout": 1.5},
    {"init": "uniform"},
    {"init": "unknown"},
    {"max_position_embeddings": 512},
    {"n_token": 30},
]
# Documented arguments under their names and their aliases.
_ARGUMENTS: dict[str, dict] = {
    "aliases": {"hidden_size": 64, "n_token": 99, "num_attention_heads": 2, "num_hidden_layers": 3},
    "tuple_of_cutoffs": {"cutoffs": (5, 10), "vocab_size": 30},
    "projections": {"proj_share_all_but_first": False, "cutoffs": [5, 10, 20], "vocab_size": 30},
    "own_tie_projs": {"tie_projs": [True, True, False], "cutoffs": [5, 10], "vocab_size": 30},
    "wikitext": {"same_length": True, "clamp_len": 1000, "mem_len": 1600, "div_val": 4},
    "initialisation": {"init": "uniform", "init_range": 0.1, "init_std": 0.5, "proj_init_std": 0.3},
    "unknown": {"something": [1, 2]},
    "labels": {"num_labels": 3, "pad_token_id": 4, "eos_token_id": 9},
}


def _ties(model: torch.nn.Module) -> list[list[str]]:
    """Names that share their storage."""
    groups: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        groups.setdefault(value.data_ptr(), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _listing(name: str, options: dict) -> dict:
    config = TransfoXLConfig(**options)
    model = getattr(transformers, name)(config)
    entry: dict = {
        "pt_state_dict": {k: list(v.shape) for k, v in model.state_dict().items()},
        "pt_parameters": sum(p.numel() for p in model.parameters()),
        "pt_named_parameters": [k for k, _ in model.named_parameters()],
        "pt_buffers": [k for k, _ in model.named_buffers()],
        "ties": _ties(model),
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        try:
            model.save_pretrained(source)
            with safe_open(source / "model.safetensors", "pt") as file:
                written = set(file.keys())
            entry["safetensors_missing"] = sorted(set(entry["pt_state_dict"]) - written)
        except RuntimeError as error:
            entry["safetensors_error"] = type(error).__name__
            model.save_pretrained(source, safe_serialization=False)
        entry["h5"] = None
        try:
            other = getattr(transformers, f"TF{name}").from_pretrained(source, from_pt=True)
        except Exception as error:
            entry["h5_error"] = type(error).__name__
            return entry
        other.save_pretrained(target)
        entry["h5"] = h5_listing(target / "tf_model.h5")
    return entry


def _variant(options: dict, classes: tuple[str, ...]) -> dict:
    entry: dict = {"options": options, "config": TransfoXLConfig(**options).to_diff_dict()}
    entry["classes"] = {}
    for name in classes:
        try:
            getattr(transformers, name)(TransfoXLConfig(**options))
        except Exception as error:
            entry["classes"][name] = {"error": type(error).__name__}
        else:
            entry["classes"][name] = _listing(name, options)
    return entry


def _tried(options: dict) -> dict:
    """What happens with an option: the type of the error of config, model or call, or none."""
    row: dict = {"options": options}
    ids = torch.arange(8)[None]
    stages = ("config", "model", "forward", "loss")
    result: object = None
    for stage in stages:
        try:
            if stage == "config":
                result = TransfoXLConfig(**{**_SHORT, **options})
            elif stage == "model":
                result = transformers.TransfoXLLMHeadModel(result).eval()
            elif stage == "forward":
                result(ids)
            else:
                result(ids, labels=ids)
        except Exception as error:
            return {**row, "fails_in": stage, "error": type(error).__name__}
    return row


def _fields(name: str) -> list[str]:
    module = sys.modules[transformers.TransfoXLModel.__module__]
    return [field.name for field in dataclasses.fields(getattr(module, name))]


_OUTPUTS = {
    _BASE: "TransfoXLModelOutput",
    _LM: "TransfoXLLMHeadModelOutput",
    _SEQUENCE: "TransfoXLSequenceClassifierOutputWithPast",
}


def manifest() -> dict:
    signatures = {}
    for name in _ALL:
        signatures[name] = signature(getattr(transformers, name).forward)
        signatures[f"TF{name}"] = signature(getattr(transformers, f"TF{name}").call)
    signatures["TransfoXLConfig.__init__"] = signature(TransfoXLConfig.__init__)
    for name in ("reset_memory_length", "resize_token_embeddings", "init_mems"):
        for cls in (_BASE, _LM):
            method = getattr(getattr(transformers, cls), name, None)
            if method is not None:
                signatures[f"{cls}.{name}"] = signature(method)
    signatures["AdaptiveEmbedding.__init__"] = signature(transformers.AdaptiveEmbedding.__init__)
    default = TransfoXLConfig()
    return {
        "default_config": {
            "to_dict": default.to_dict(),
            "to_diff_dict": default.to_diff_dict(),
            "attribute_map": dict(TransfoXLConfig.attribute_map),
            "keys_to_ignore_at_inference": list(
                getattr(TransfoXLConfig, "keys_to_ignore_at_inference", [])
            ),
        },
        "arguments": {
            name: {"options": options, "config": TransfoXLConfig(**options).to_diff_dict()}
            for name, options in _ARGUMENTS.items()
        },
        "wrong": [_tried(options) for options in _WRONG],
        "generation_config": {
            "from_model": GenerationConfig.from_model_config(default).to_diff_dict()
        },
        "signatures": signatures,
        "outputs": {name: {"class": out, "fields": _fields(out)} for name, out in _OUTPUTS.items()},
        "variants": {name: _variant(*variant) for name, variant in VARIANTS.items()},
    }
