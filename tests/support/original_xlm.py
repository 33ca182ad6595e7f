"""The files of facebookresearch/XLM in tests/data, and ways to look at such files."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from xlmfam.conversion.formats.torch_file import StoredTensor
from xlmfam.conversion.formats.torch_writer import tensor_of
from xlmfam.conversion.originals import open_original

DATA = Path(__file__).parents[1] / "data" / "originals" / "xlm"
MODELS = ("mlm", "clm", "asm", "mt")


def unpack(folder):
    """Write the original files into a folder; returns it."""
    for name in MODELS:
        packed = (DATA / f"{name}.pth.gz").read_bytes()
        (folder / f"{name}.pth").write_bytes(gzip.decompress(packed))
    for name in ("codes", "vocab"):
        shutil.copy(DATA / name, folder)
    return folder


def arrays_of(path):
    """Return all arrays of an original file by our names."""
    original = open_original(path)
    with original.source as source:
        return {name: source.read(name) for name in source.specs()}


def original_of(path):
    """Return what an original file says, closed."""
    original = open_original(path)
    original.source.close()
    return original


def rebuilt(nested, file):
    """Return what `write_torch_file` writes as the same again."""
    if isinstance(nested, StoredTensor):
        return tensor_of(file.read(nested))
    if isinstance(nested, dict):
        return {key: rebuilt(value, file) for key, value in nested.items()}
    if isinstance(nested, list | tuple):
        return type(nested)(rebuilt(value, file) for value in nested)
    return nested if isinstance(nested, str | int | float | None) else None
