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
        CheckpointError: When it is one of these and damaged.
    """
    path = Path(name_or_path).expanduser()
    prefix = importlib.import_module(_TF1).find(path)
    if prefix is not None:
        return importlib.import_module(_TF1).open_original(prefix)
    for candidate in _candidates(path):
        file = TorchFile(candidate)
        for release in RELEASES:
            module = module_of(release)
            if module.matches(file.value):
                try:
                    return module.open_original(file)
                except BaseException:
                    file.close()
                    raise
        file.close()
    return None


def _candidates(path: Path) -> list[Path]:
    """Files that may be one."""
    if path.is_file():
        return [path] if path.suffix in _ENDINGS and is_torch_file(path) else []
    if not path.is_dir() or (path / "config.json").is_file():
        return []
    files = sorted(entry for entry in path.iterdir() if entry.suffix in _ENDINGS)
    return [file for file in files if file.is_file() and is_torch_file(file)]
