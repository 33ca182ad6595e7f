"""The small checkpoints of the original code (tests/reference/make_original_transfo_xl.py)."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data" / "originals" / "transfo_xl"
PYTORCH = ("tails", "untied", "state", "half")
TF1 = ("tf1_tails", "tf1_same_dim", "tf1_one_table", "tf1_letters")
# Not the checkpoint's: what it was made with and what came out.
_RECORDED = ("outputs.npz", "flags.json", "line.json")


def unpack(case, folder):
    """Lay the files of a case into a folder, as the original code left them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (DATA / case).iterdir():
        if path.suffix == ".gz":
            (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        elif path.name not in _RECORDED:
            shutil.copy(path, folder / path.name)
    return folder


def recorded(case):
    """Return inputs and outputs."""
    with np.load(DATA / case / "outputs.npz") as file:
        return dict(file)


def record(case, name):
    """Return what a JSON file of a case holds."""
    return json.loads((DATA / case / f"{name}.json").read_text(encoding="utf-8"))
