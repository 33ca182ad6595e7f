"""Write the XLM manifests and golden files with the pinned reference (see README.md)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
import transformers
from golden_tools import update_json, write_json

DATA = Path(__file__).resolve().parents[1] / "data"
PARTS = (
    "checkpoints",
    "formats",
    "calls",
    "training",
    "adaptive",
    "generation",
    "manifests",
    "translation",
)
_SECTIONS = ("calls", "training", "adaptive", "translation")


def _section(part: str, root: Path, original: Path | None) -> object:
    if part == "calls":
        from xlm_calls import call_cases

        return call_cases(root)
    if part == "training":
        from xlm_training import training_cases

        return training_cases(root)
    if part == "adaptive":
        from xlm_adaptive import adaptive_cases

        return adaptive_cases(root)
    from xlm_translation import translation_cases

    return translation_cases(root, original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", default=list(PARTS), help=f"any of: {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the data folder to write into")
    parser.add_argument(
        "--original", type=Path, help="a checkout of facebookresearch/XLM (for `translation`)"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part(s) {sorted(unknown)}; known: {', '.join(PARTS)}")
    if "translation" in arguments.parts and arguments.original is None:
        parser.error("translation needs --original, a checkout of facebookresearch/XLM")
    if transformers.__version__ != "4.37.2":
        parser.error(f"the reference is transformers 4.37.2, this is {transformers.__version__}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    root = arguments.data / "golden" / "xlm"
    for part in PARTS:
        if part not in arguments.parts:
            continue
        print(f"writing {part}", flush=True)
        if part == "checkpoints":
            from xlm_checkpoints import write_checkpoints

            write_checkpoints(root)
        elif part == "formats":
            from xlm_checkpoints import write_formats

            write_formats(root)
        elif part == "manifests":
            from xlm_manifests import manifest

            write_json(arguments.data / "manifests" / "xlm.json", manifest())
        elif part == "generation":
            from xlm_generation import generation_cases

            write_json(root / "generation.json", generation_cases(root))
        else:
            section = {part: _section(part, root, arguments.original)}
            update_json(root / "cases.json", section, _SECTIONS)


if __name__ == "__main__":
    main()
