"""Load what xlmfam wrote with transformers 4.37.2 and compare the logits (see README.md)."""

from __future__ import annotations

import argparse
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
FORMATS = ("safetensors", "sharded", "pt", "tf", "flax")


class ProblemError(Exception):
    """What is wrong with one checkpoint."""


def _torch_logits(
    folder: Path, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    model, info = transformers.XGLMForCausalLM.from_pretrained(folder, output_loading_info=True)
    _refuse(
        {
            key: info[key]
            for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        }
    )
    with torch.no_grad():
        given = (torch.from_numpy(a.astype(np.int64)) for a in (ids, mask, positions))
        return model.eval()(*given).logits.numpy()


def _tf_logits(
    folder: Path, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    if not (folder / "tf_model.h5").exists():
        raise ProblemError("no tf_model.h5")
    model, info = transformers.TFXGLMForCausalLM.from_pretrained(folder, output_loading_info=True)
    _refuse({key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")})
    return model(ids, attention_mask=mask, position_ids=positions).logits.numpy()


def _flax_logits(
    folder: Path, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    from flax.serialization import msgpack_restore
    from flax.traverse_util import flatten_dict

    if not (folder / "flax_model.msgpack").exists():
        raise ProblemError("no flax_model.msgpack")
    model = transformers.FlaxXGLMForCausalLM.from_pretrained(folder)
    stored = flatten_dict(msgpack_restore((folder / "flax_model.msgpack").read_bytes()))
    wanted = flatten_dict(model.params_shape_tree)
    _refuse(
        {
            "missing_keys": sorted("/".join(key) for key in wanted.keys() - stored.keys()),
            "unexpected_keys": sorted("/".join(key) for key in stored.keys() - wanted.keys()),
        }
    )
    return np.asarray(model(ids, attention_mask=mask, position_ids=positions).logits)


def _refuse(faults: dict) -> None:
    found = {key: list(value) for key, value in faults.items() if value}
    if found:
        raise ProblemError("; ".join(f"{key}: {value}" for key, value in found.items()))


def _largest_difference(name: str, folder: Path, inputs: dict, expected: np.ndarray) -> float:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    leading = (mask.cumsum(-1) == 0).sum(-1, keepdims=True)
    # The reference places left-padded rows wrongly unless it is told where they start.
    positions = np.clip(np.arange(ids.shape[1])[None] - leading, 0, None)
    run = {"tf": _tf_logits, "flax": _flax_logits}.get(name, _torch_logits)
    ids, mask, positions = (a.astype(np.int32) for a in (ids, mask, positions))
    logits = run(folder, ids, mask, positions)
    if logits.shape != expected.shape:
        raise ProblemError(f"logits of shape {logits.shape}, expected {expected.shape}")
    real = mask.astype(bool)
    scale = max(1.0, float(np.abs(expected[real]).max()))
    difference = float(np.abs(logits[real] - expected[real]).max()) / scale
    if not difference <= TOLERANCE:
        raise ProblemError(f"largest difference {difference:.2e} is above {TOLERANCE:.0e}")
    return difference


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
    with np.load(folder / "inputs.npz") as file:
        inputs = {key: file[key] for key in file.files}
    with np.load(folder / "logits.npz") as file:
        expected = file["logits"]
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
        except Exception as error:  # whatever the reference raises is this checkpoint's result
            failed = True
            print(f"{name:<12} {'FAILED':<6} {type(error).__name__}: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
