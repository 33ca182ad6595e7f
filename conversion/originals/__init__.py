"""Checkpoints as the authors released them: facebookresearch/XLM, fairseq, kimiyoung.

Which release a file is of is found in the file itself. Each release has a module with

- ``matches(value)``: whether what a file of ``torch.save`` holds (`torch_file.TorchFile.value`) is
  of this release;
- ``open_original(file)``: an `Original` of the open file;
- ``write_original(work)``: the way back, from a `targets.Work`.

TensorFlow 1 checkpoints are no files of ``torch.save``; `transfo_xl_tf1` has ``find(path)`` and
``open_original(path)`` for them.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from xlmfam.common.checkpoints.files import FORMATS
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.formats.torch_file import TorchFile, is_torch_file
from xlmfam.conversion.originals.base import Original

RELEASES = {
    "xlm": "xlmfam.conversion.originals.xlm",
    "fairseq-xglm": "xlmfam.conversion.originals.fairseq_xglm",
    "fairseq-xmod": "xlmfam.conversion.originals.fairseq_xmod",
    "transfo-xl": "xlmfam.conversion.originals.transfo_xl",
}
_TF1 = "xlmfam.conversion.originals.transfo_xl_tf1"
_ENDINGS = (".pth", ".pt", ".bin")


def module_of(release: str) -> Any:
    """Import the module of a release."""
    return importlib.import_module(RELEASES[release])


def open_original(name_or_path: str | os.PathLike[str]) -> Original | None:
    """Open a checkpoint of an original release, or a folder with one.

    Args:
        name_or_path: What the user gave; a name on the hub is none of these.

    Returns:
        ``None`` for anything else.

    Raises:
        CheckpointError: When it is one of these and damaged, or a folder has several.
    """
    path = Path(name_or_path).expanduser()
    prefix = importlib.import_module(_TF1).find(path)
    if prefix is not None:
        return importlib.import_module(_TF1).open_original(prefix)
    found = _matching(path)
    if not found:
        return None
    file, module = found[0]
    try:
        if len(found) > 1:
            names = ", ".join(other.path.name for other, _ in found)
            raise CheckpointError(f"{path} holds several checkpoints: {names}; name one of them")
        return module.open_original(file)
    except BaseException:
        for other, _ in found:
            other.close()
        raise


def _matching(path: Path) -> list[tuple[TorchFile, Any]]:
    """Return the open files that are of a release, with its module."""
    found = []
    for candidate in _candidates(path):
        file = TorchFile(candidate)
        module = next((m for m in map(module_of, RELEASES) if m.matches(file.value)), None)
        if module is None:
            file.close()
        else:
            found.append((file, module))
    return found


def _candidates(path: Path) -> list[Path]:
    """Files that may be one."""
    if path.is_file():
        return [path] if path.suffix in _ENDINGS and is_torch_file(path) else []
    if not path.is_dir() or any(_is_known(entry.name) for entry in path.iterdir()):
        return []
    files = sorted(entry for entry in path.iterdir() if entry.suffix in _ENDINGS)
    return [file for file in files if file.is_file() and is_torch_file(file)]


def _is_known(name: str) -> bool:
    """Whether a folder with such a file has a checkpoint in one of the formats of `FORMATS`."""
    return any(name in (form.single, form.index) for form in FORMATS.values())
