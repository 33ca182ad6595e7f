"""Load what xlmfam wrote with transformers 4.37.2 and compare the results (see README.md)."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers

TOLERANCE = 5e-5
FORMATS = ("safetensors", "sharded", "pt", "tf", "tf_sharded", "flax")
# Files that must be there: without them the reference takes what another framework wrote.
FILES = {
    "tf": "tf_model.h5",
    "tf_sharded": "tf_model.h5.index.json",
    "flax": "flax_model.msgpack",
}
FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
Arrays = dict[str, np.ndarray]


class ProblemError(Exception):
    """What is wrong with one checkpoint."""


class CannotError(Exception):
    """What the reference itself has not."""


def _class(folder: Path, prefix: str = "") -> type:
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    found = getattr(transformers, prefix + name, None)
    if found is None:
        raise CannotError(f"the reference has no {prefix}{name}")
    return found


def _torch_outputs(folder: Path, inputs: Arrays, wanted: list[str]) -> Arrays:
    with torch.no_grad():  # the reference cannot build a sinusoidal XLM otherwise
        model, info = _class(folder).from_pretrained(folder, output_loading_info=True)
        buffers = {name for name, _ in model.named_buffers()}  # computed, not read
        faults = {key: [n for n in info[key] if n not in buffers] for key in FAULTS}
        _refuse(faults)
        model = _part(model.eval(), wanted)
        known = inspect.signature(model.forward).parameters  # Transformer-XL takes no mask
        tensors = {n: torch.from_numpy(a).long() for n, a in inputs.items() if n in known}
        output = model(**tensors)
    return {name: output[name].numpy() for name in wanted}


def _tf_outputs(folder: Path, inputs: Arrays, wanted: list[str]) -> Arrays:
    cls = _class(folder, "TF")
    config = cls.config_class.from_pretrained(folder)
    if not hasattr(config, "initializer_range"):
        config.initializer_range = 0.02  # XLM's multiple choice looks for it
    model, info = cls.from_pretrained(folder, config=config, output_loading_info=True)
    # Layers that have no weights are listed where the file has no empty group of their name.
    empty = {layer.name for layer in model.layers if not layer.weights}
    missing = sorted(set(info["missing_keys"]) - empty)
    _refuse({**{key: info[key] for key in FAULTS if key in info}, "missing_keys": missing})
    output = _part(model, wanted)(inputs)
    return {name: np.asarray(output[name]) for name in wanted}


def _flax_outputs(folder: Path, inputs: Arrays, wanted: list[str]) -> Arrays:
    from flax.serialization import msgpack_restore
    from flax.traverse_util import flatten_dict

    model = _class(folder, "Flax").from_pretrained(folder)
    stored = flatten_dict(msgpack_restore((folder / "flax_model.msgpack").read_bytes()))
    expected = flatten_dict(model.params_shape_tree)
    _refuse(
        {
            "missing_keys": sorted("/".join(key) for key in expected.keys() - stored.keys()),
            "unexpected_keys": sorted("/".join(key) for key in stored.keys() - expected.keys()),
        }
    )
    output = model(**inputs)
    return {name: np.asarray(output[name]) for name in wanted}


def _part(model: object, wanted: list[str]) -> object:
    """The model without its head where only hidden states are asked for."""
    return getattr(model, "base_model", model) if wanted == ["last_hidden_state"] else model


def _refuse(faults: dict) -> None:
    found = {key: list(value) for key, value in faults.items() if value}
    if found:
        raise ProblemError("; ".join(f"{key}: {value}" for key, value in found.items()))


def _with_positions(folder: Path, inputs: Arrays) -> Arrays:
    """Tell XGLM where left-padded rows start: the reference places them wrongly by itself."""
    if json.loads((folder / "config.json").read_text())["model_type"] != "xglm":
        return inputs
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    leading = (mask.cumsum(-1) == 0).sum(-1, keepdims=True)
    positions = np.clip(np.arange(ids.shape[1])[None] - leading, 0, None)
    return {**inputs, "position_ids": positions}


def _largest_difference(name: str, folder: Path, inputs: Arrays, expected: Arrays) -> float:
    if name in FILES and not (folder / FILES[name]).exists():
        raise ProblemError(f"no {FILES[name]}")
    run = {"tf": _tf_outputs, "tf_sharded": _tf_outputs, "flax": _flax_outputs}.get(
        name, _torch_outputs
    )
    given = {key: a.astype(np.int32) for key, a in _with_positions(folder, inputs).items()}
    outputs = run(folder, given, list(expected))
    real = inputs["attention_mask"].astype(bool)
    return max(_compare(key, outputs[key], expected[key], real) for key in expected)


def _compare(name: str, came: np.ndarray, expected: np.ndarray, real: np.ndarray) -> float:
    if came.shape != expected.shape:
        raise ProblemError(f"{name} of shape {came.shape}, expected {expected.shape}")
    if came.shape[: real.ndim] == real.shape:
        came, expected = came[real], expected[real]
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(came - expected).max()) / scale
    if not difference <= TOLERANCE:
        raise ProblemError(f"{name}: largest difference {difference:.2e} above {TOLERANCE:.0e}")
    return difference


def _load(path: Path) -> Arrays:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help=f"holds any of {', '.join(FORMATS)}, inputs.npz and logits.npz"
    )
    parser.add_argument(
        "--only", choices=FORMATS, nargs="+", help="these formats, each of which must be there"
    )
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder: Path = arguments.folder
    for name in ("inputs.npz", "logits.npz"):
        if not (folder / name).is_file():
            parser.error(f"{folder / name} is not there")
    inputs, expected = _load(folder / "inputs.npz"), _load(folder / "logits.npz")
    inputs.setdefault("attention_mask", np.ones_like(inputs["input_ids"]))
    names = arguments.only or [name for name in FORMATS if (folder / name).is_dir()]
    if not names:
        parser.error(f"{folder} has none of the folders {', '.join(FORMATS)}")
    failed = False
    print(f"{'format':<12} {'result':<6} largest difference (relative)")
    for name in names:
        try:
            difference = _largest_difference(name, folder / name, inputs, expected)
            print(f"{name:<12} {'ok':<6} {difference:.2e}")
        except (CannotError, NotImplementedError) as error:
            failed = failed or bool(arguments.only)
            print(f"{name:<12} {'cannot':<6} {error}")
        except Exception as error:  # whatever the reference raises is this checkpoint's result
            failed = True
            print(f"{name:<12} {'FAILED':<6} {type(error).__name__}: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
