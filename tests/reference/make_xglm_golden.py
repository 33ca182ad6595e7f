"""Write the XGLM manifests and golden files with the pinned reference (see README.md)."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
import transformers

DATA = Path(__file__).resolve().parents[1] / "data"
PARTS = ("checkpoints", "formats", "calls", "training", "processors", "generation", "manifests")


def write_json(path: Path, value: object) -> None:
    """Readable JSON: one item per line near the top, compact below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_pretty(value, 0) + "\n", encoding="utf-8")


def _pretty(value: object, level: int) -> str:
    compact = json.dumps(value, ensure_ascii=False)
    if len(compact) + level <= 140 or not isinstance(value, (dict, list)):
        return compact
    pad, end = "\n" + " " * (level + 1), "\n" + " " * level
    if isinstance(value, dict):
        rows = [f"{json.dumps(k)}: {_pretty(v, level + 1)}" for k, v in value.items()]
        return "{" + pad + ("," + pad).join(rows) + end + "}"
    if all(isinstance(v, (int, float)) for v in value):
        return compact
    return "[" + pad + ("," + pad).join(_pretty(v, level + 1) for v in value) + end + "]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", default=list(PARTS), help=f"any of: {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the data folder to write into")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part(s) {sorted(unknown)}; known: {', '.join(PARTS)}")
    if transformers.__version__ != "4.37.2":
        parser.error(f"the reference is transformers 4.37.2, this is {transformers.__version__}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    root = arguments.data / "golden" / "xglm"
    for part in PARTS:
        if part not in arguments.parts:
            continue
        print(f"writing {part}", flush=True)
        if part == "checkpoints":
            from xglm_checkpoints import write_checkpoints

            write_checkpoints(root)
        elif part == "formats":
            from xglm_checkpoints import write_formats

            write_formats(root)
        elif part == "manifests":
            from xglm_manifests import manifest

            write_json(arguments.data / "manifests" / "xglm.json", manifest())
        elif part == "generation":
            from xglm_generation import generation_cases

            write_json(root / "generation.json", generation_cases(root))
        else:
            section = {}
            if part == "calls":
                from xglm_calls import call_cases as make
            elif part == "training":
                from xglm_training import training_cases as make
            else:
                from xglm_processors import processor_cases as make
            section[part] = make(root)
            path = root / "cases.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            known.update(section)
            order = ("calls", "training", "processors")
            write_json(path, {key: known[key] for key in order if key in known})


if __name__ == "__main__":
    main()
