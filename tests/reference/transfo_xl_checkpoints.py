"""Tiny Transformer-XL checkpoints with every parameter randomised, written by the reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers
from golden_tools import without_folder_names
from transformers import TransfoXLConfig

# Every dropout stands at zero, so that training-mode numbers are comparable too.
_STILL = {"dropout": 0.0, "dropatt": 0.0}
# The sizes inside a config all differ, so that no transposed or swapped axis fits by accident;
# n_head * d_head is not d_model, and the clusters have as many tokens as no other has.
_PLAIN = {
    **_STILL,
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
    "same_length": True,
}
# One width throughout: no projections. The biases of the positions are shared between the layers.
_ONE_WIDTH = {
    **_STILL,
    "vocab_size": 47,
    "cutoffs": [9, 22, 37],
    "d_model": 16,
    "d_embed": 16,
    "n_head": 4,
    "d_head": 3,
    "d_inner": 21,
    "div_val": 1,
    "n_layer": 2,
    "mem_len": 5,
    "clamp_len": -1,
    "same_length": False,
    "untie_r": False,
}
# One projection for all clusters; the softmax has one more, for the first.
_NARROW = {
    **_STILL,
    "vocab_size": 41,
    "cutoffs": [13],
    "d_model": 14,
    "d_embed": 10,
    "n_head": 5,
    "d_head": 4,
    "d_inner": 19,
    "div_val": 1,
    "n_layer": 2,
    "mem_len": 6,
    "clamp_len": 8,
    "same_length": False,
}
# Widths of 35, 8 and 2: the divisions have remainders.
_PRE_NORM = {
    **_STILL,
    "vocab_size": 43,
    "cutoffs": [9, 21],
    "d_model": 16,
    "d_embed": 35,
    "n_head": 2,
    "d_head": 7,
    "d_inner": 25,
    "div_val": 4,
    "n_layer": 2,
    "mem_len": 8,
    "clamp_len": 6,
    "same_length": True,
    "pre_lnorm": True,
    "layer_norm_epsilon": 1e-3,
}
_UNTIED = {
    **_STILL,
    "vocab_size": 37,
    "cutoffs": [7, 16, 29],
    "d_model": 20,
    "d_embed": 16,
    "n_head": 3,
    "d_head": 6,
    "d_inner": 11,
    "div_val": 2,
    "n_layer": 2,
    "mem_len": 4,
    "clamp_len": -1,
    "same_length": False,
    "untie_r": False,
    "tie_word_embeddings": False,
    "tie_projs": [False, False, False, False],
}
# Its head is not tied, as a tied one mostly repeats the last token.
_TEXT = {
    **_STILL,
    "vocab_size": 39,
    "cutoffs": [10, 23],
    "d_model": 18,
    "d_embed": 14,
    "n_head": 4,
    "d_head": 5,
    "d_inner": 29,
    "div_val": 2,
    "n_layer": 2,
    "mem_len": 9,
    "clamp_len": 12,
    "same_length": True,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
# The reference's classifier fits only where the embedding is as wide as the model.
_HEAD = {**_PLAIN, "d_embed": 18, "n_layer": 1, "pad_token_id": 1}
_LM, _SEQUENCE = "TransfoXLLMHeadModel", "TransfoXLForSequenceClassification"

# Folder: the class it is written from, its options, its seed.
CHECKPOINTS: dict[str, tuple[str, dict, int]] = {
    "plain": (_LM, _PLAIN, 61),
    "one_width": (_LM, _ONE_WIDTH, 62),
    "narrow": (_LM, _NARROW, 63),
    "pre_norm": (_LM, _PRE_NORM, 64),
    "untied": (_LM, _UNTIED, 65),
    "text": (_LM, _TEXT, 66),
    "sequence": (_SEQUENCE, {**_HEAD, "num_labels": 7}, 67),
    "sequence_one": (_SEQUENCE, {**_HEAD, "num_labels": 1}, 68),
}

# The checkpoint that generates leans to the end token and never pads.
_EOS_LEAN, _PAD_LEAN = 1.5, -9.0


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter from one seeded generator, in the order of the sorted names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("cluster_bias"):  # so that the rarer tokens are chosen too
                parameter.copy_(1.5 + 0.3 * noise)
            elif "emb_layers" in name or ("out_layers" in name and name.endswith("weight")):
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
            elif name.endswith("bias"):  # those of the positions too
                parameter.copy_(0.3 * noise)
            elif "_projs" in name and model.config.pre_lnorm:  # no norm stands before the softmax
                parameter.copy_(0.12 * noise)
            elif "qkv" in name or "r_net" in name:
                parameter.copy_(0.35 * noise)
            else:
                parameter.copy_(0.3 * noise)


def build(case: str) -> torch.nn.Module:
    """The model of one case, in evaluation mode."""
    cls, options, seed = CHECKPOINTS[case]
    model = getattr(transformers, cls)(TransfoXLConfig(**options)).eval()
    randomise(model, seed)
    if case == "text":
        with torch.no_grad():
            bias = model.crit.out_layers[0].bias
            bias[model.config.eos_token_id] += _EOS_LEAN
            bias[model.config.pad_token_id] += _PAD_LEAN
    return model


def write_checkpoints(root: Path) -> None:
    for case in CHECKPOINTS:
        folder = root / case
        folder.mkdir(parents=True, exist_ok=True)
        build(case).save_pretrained(folder, safe_serialization=True)


def write_formats(root: Path) -> None:
    """Some of the weights in the file formats that the reference writes."""
    for case in ("plain", "pre_norm"):
        folder = root / f"{case}_formats"
        shutil.rmtree(folder, ignore_errors=True)
        model = build(case)
        if case == "plain":
            model.save_pretrained(folder / "pt", safe_serialization=False)
            model.save_pretrained(
                folder / "sharded_safetensors", safe_serialization=True, max_shard_size="16KB"
            )
            model.transformer.save_pretrained(folder / "base_safetensors", safe_serialization=True)
        tf = transformers.TFTransfoXLLMHeadModel.from_pretrained(str(root / case), from_pt=True)
        tf.save_pretrained(folder / "tf")
        _compare(case, model, tf)
        without_folder_names(folder)


def _compare(case: str, model: torch.nn.Module, tf: object) -> None:
    """Say how far TensorFlow is from PyTorch on the same weights, over three segments."""
    ids = torch.randint(0, model.config.vocab_size, (2, 15), generator=torch.manual_seed(1))
    mems, tf_mems, differences = None, None, []
    for segment in ids.split([4, 9, 2], 1):
        with torch.no_grad():
            here = model(segment, mems=mems)
        there = tf(segment.numpy(), mems=tf_mems)
        mems, tf_mems = here.mems, there.mems
        scores = torch.from_numpy(there.prediction_scores.numpy())
        differences.append((scores - here.prediction_scores).abs().max().item())
    print(f"  {case}: TensorFlow differs by {differences}")


def load(root: Path, case: str, cls: str | None = None, **overrides: object) -> torch.nn.Module:
    """A written checkpoint, read back by the reference."""
    name = cls or CHECKPOINTS[case][0]
    return getattr(transformers, name).from_pretrained(root / case, **overrides).eval()
