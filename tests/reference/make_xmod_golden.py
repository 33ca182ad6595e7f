"""Write the X-MOD manifests and golden files with the pinned reference (see README.md)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from golden_tools import update_json, write_json

DATA = Path(__file__).resolve().parents[1] / "data"
PARTS = ("checkpoints", "formats", "calls", "training", "generation", "manifests", "refusals")
_SECTIONS = ("calls", "training")


def _section(part: str, root: Path) -> object:
    if part == "calls":
        from xmod_calls import call_cases

        return call_cases(root)
    from xmod_training import training_cases

    return training_cases(root)


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

    root = arguments.data / "golden" / "xmod"
    for part in PARTS:
        if part not in arguments.parts:
            continue
        print(f"writing {part}", flush=True)
        if part == "checkpoints":
            from xmod_checkpoints import write_checkpoints

            write_checkpoints(root)
        elif part == "formats":
            from xmod_checkpoints import write_formats

            write_formats(root)
        elif part == "manifests":
            from xmod_manifests import manifest

            write_json(arguments.data / "manifests" / "xmod.json", manifest())
        elif part == "generation":
            from xmod_generation import generation_cases

            write_json(root / "generation.json", generation_cases(root))
        elif part == "refusals":
            from xmod_refusals import refusals

            write_json(root / "refusals.json", refusals(root))
        else:
            update_json(root / "cases.json", {part: _section(part, root)}, _SECTIONS)


if __name__ == "__main__":
    main()
