"""What a conversion report is made of: gathered while all is open, written as data and a page."""

from __future__ import annotations

import platform
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from xlmfam import __version__
from xlmfam.common.checkpoints.files import REPORT_FILES
from xlmfam.common.checkpoints.models import ParameterReader
from xlmfam.conversion.checksum import whole_checksum
from xlmfam.conversion.report import CarriedTensor, Conversion
from xlmfam.conversion.report_html import html_page
from xlmfam.conversion.sources import OpenCheckpoint
from xlmfam.conversion.writing import Written, source_files

# What beside ourselves has a hand in reading or writing a format.
_PACKAGES = {
    "safetensors": ("safetensors",),
    "pt": ("torch",),
    "tf": ("h5py",),
    "flax": ("msgpack",),
    "orbax": ("orbax-checkpoint", "jax"),
    "keras": ("keras", "tensorflow"),
    "savedmodel": ("tensorflow",),
    "onnx": ("onnx", "torch"),
}


def weights_told(
    checkpoint: OpenCheckpoint, reader: ParameterReader, to: str, written: Written
) -> dict[str, Any]:
    """Return what the report says of the weights, as arguments of `Conversion`.

    Args:
        checkpoint: The source.
        reader: What was read of it.
        to: What it was written as.
        written: Where everything went.
    """
    specs = checkpoint.source.specs()
    original_name = getattr(checkpoint.source, "stored_as", lambda name: name)
    tensors = []
    for name, stored in reader.plan.sources.items():
        own = specs[stored].dtype
        places = written.places.get(name, ())
        tensors.append(
            CarriedTensor(
                name=name,
                stored_as=original_name(stored),
                written_as=[place for place, _ in places],
                files=[file for _, file in places],
                shape=reader.parameters[name].shape,
                source_dtype=own.name,
                dtype=(reader.dtype or own).name,
                transposed=name in written.turned,
                sha256=written.sums[name],
            )
        )
    original = checkpoint.original
    return {
        "family": checkpoint.config.model_type,
        "head": checkpoint.head,
        "source_format": checkpoint.format,
        "format": to,
        "tensors": len(tensors),
        "parameters": sum(reader.parameters[t.name].size for t in tensors),
        "dtypes": dict(Counter(t.dtype for t in tensors)),
        "cast": sum(t.dtype != t.source_dtype for t in tensors),
        "dropped": {**(original.dropped if original else {}), **reader.plan.dropped},
        "carried": tensors,
        "ties": {n: p.tied_to for n, p in reader.parameters.items() if p.tied_to is not None},
        "checksum": whole_checksum({t.name: (t.dtype, t.shape, t.sha256) for t in tensors}),
        "source_files": source_files(checkpoint.source),
        "notes": list(original.notes) if original else [],
        "versions": _versions(checkpoint.format, to),
        "resumed": written.resumed,
    }


def _versions(*formats: str) -> dict[str, str]:
    names = ["numpy", *(name for form in formats for name in _PACKAGES.get(form, ()))]
    found = {"xlmfam": __version__, "python": platform.python_version()}
    for name in dict.fromkeys(names):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def report_files(conversion: Conversion) -> dict[str, bytes]:
    """Return name and content of the report's files."""
    data, page = REPORT_FILES
    others = {name: size for name, size in conversion.files.items() if name not in REPORT_FILES}
    told = replace(conversion, files=others)
    return {data: told.to_json().encode(), page: html_page(told).encode()}
