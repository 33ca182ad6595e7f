"""Opening and saving a whole checkpoint: which files it lies in, and which module handles them."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlmfam.common.checkpoints.atomic import atomic_folder
from xlmfam.common.checkpoints.filling import fill
from xlmfam.common.checkpoints.journal import Journal
from xlmfam.common.checkpoints.locate import resolve_file
from xlmfam.common.checkpoints.raw import ReadTensor
from xlmfam.common.checkpoints.shards import (
    ShardedSource,
    deal,
    index_text,
    is_plain_name,
    parse_size,
)
from xlmfam.common.checkpoints.source import Spelling, TensorSource, TensorSpec
from xlmfam.common.errors import CheckpointError

# What tells how the weights in a folder came to be, and is no longer true of later ones.
REPORT_FILES = ("conversion_report.json", "conversion_report.html")
# What a repository cloned without Git LFS has in the place of its large files.
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Format:
    """A file format for weights.

    Attributes:
        stem: File name without its ending.
        ending: The ending.
        module: The module with its ``open_file``, ``lay_out``, ``index_name`` and
            ``name_in_index``.
        spelling: How its tensor names are spelled.
        other_endings: Endings that a single file of this format may have besides.
    """

    stem: str
    ending: str
    module: str
    spelling: Spelling
    other_endings: tuple[str, ...] = ()

    @property
    def single(self) -> str:
        """Name of the file when there is only one."""
        return f"{self.stem}{self.ending}"

    @property
    def index(self) -> str:
        """Name of the index of shards."""
        return f"{self.single}.index.json"

    def shard(self, number: int, count: int) -> str:
        """Name of a shard; numbers start at 1."""
        return f"{self.stem}-{number:05d}-of-{count:05d}{self.ending}"

    def owns(self, name: str) -> bool:
        """Whether a file name is one that a save in this format may have left."""
        stem, ending = re.escape(self.stem), re.escape(self.ending)
        return bool(re.fullmatch(rf"{stem}(-\d{{5,}}-of-\d{{5,}})?{ending}(\.index\.json)?", name))

    def load(self) -> Any:
        """Import the module that handles the format."""
        return importlib.import_module(self.module)

    def open_file(self, path: Path) -> TensorSource:
        """Open one file of this format."""
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise CheckpointError(
                    f"{path}: is a Git LFS pointer and not the file itself; run `git lfs pull` in "
                    "the folder, or download the file"
                )
        return self.load().open_file(path)


# The one place where `common` names something above itself: the formats other than safetensors
# are part of `xlmfam.conversion`, which depends on `common`. Hence strings, imported when used.
# The order is the order in which a folder is searched.
FORMATS: dict[str, Format] = {
    "safetensors": Format(
        "model", ".safetensors", "xlmfam.common.checkpoints.safetensors_files", "canonical"
    ),
    "pt": Format(
        "pytorch_model",
        ".bin",
        "xlmfam.conversion.formats.pytorch_bin",
        "canonical",
        (".pt", ".pth"),
    ),
    "tf": Format("tf_model", ".h5", "xlmfam.conversion.formats.tf_h5", "keras_h5", (".hdf5",)),
    "flax": Format("flax_model", ".msgpack", "xlmfam.conversion.formats.flax_msgpack", "flax"),
}


def get_format(name: str) -> Format:
    """Look a format up.

    Args:
        name: ``safetensors``, ``pt``, ``tf`` or ``flax``.

    Returns:
        The format.

    Raises:
        CheckpointError: There is no such format.
    """
    if name not in FORMATS:
        raise CheckpointError(f"format is {name!r}; possible are {', '.join(FORMATS)}")
    return FORMATS[name]


def open_checkpoint(
    name_or_path: str | os.PathLike[str], *, format: str | None = None, **hub: Any
) -> TensorSource:
    """Open the weights of a model, in whichever format they are.

    Args:
        name_or_path: A folder, a repository on the hub, or one file of weights or shard index.
        format: Look only for ``safetensors``, ``pt``, ``tf`` or ``flax``; by default the first
            that is found, in this order.
        **hub: Passed on to `resolve_file`.

    Returns:
        The open checkpoint; close it, or use it in a ``with``.

    Raises:
        CheckpointError: Nothing was found, or what was found is damaged.
    """
    wanted = [get_format(format)] if format else list(FORMATS.values())
    single = Path(name_or_path).expanduser()
    if single.is_file():
        return _open_single(single, wanted)
    for candidate in wanted:
        path = resolve_file(name_or_path, candidate.single, **hub)
        if path is not None:
            return candidate.open_file(path)
        path = resolve_file(name_or_path, candidate.index, **hub)
        if path is not None:
            return _open_index(path, candidate, lambda f: resolve_file(name_or_path, f, **hub))
    raise CheckpointError(_nothing_found(name_or_path, wanted, hub.get("subfolder")))


def _open_index(index: Path, form: Format, find: Callable[[str], Path | None]) -> TensorSource:
    return ShardedSource(index, find, form.open_file, form.load().name_in_index)


def _open_single(path: Path, wanted: list[Format]) -> TensorSource:
    def beside(name: str) -> Path | None:
        shard = path.parent / name
        return shard if shard.is_file() else None

    for form in wanted:
        if path.name.endswith(f"{form.ending}.index.json"):
            return _open_index(path, form, beside)
        if path.name.endswith((form.ending, *form.other_endings)):
            return form.open_file(path)
    endings = [ending for form in wanted for ending in (form.ending, *form.other_endings)]
    raise CheckpointError(f"{path}: not a file of weights; known endings are {', '.join(endings)}")


def _nothing_found(
    name_or_path: str | os.PathLike[str], wanted: list[Format], subfolder: str | None
) -> str:
    names = ", ".join(name for form in wanted for name in (form.single, form.index))
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        return (
            f"{os.fspath(name_or_path)!r}: the repository (or what the cache has of it, if the hub "
            f"could not be asked) has none of {names}"
        )
    folder = folder / (subfolder or "")
    if not folder.is_dir():
        return f"{folder}: there is no such folder"
    there = sorted(entry.name for entry in folder.iterdir())
    listed = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    return f"{folder}: found none of {names}; the folder holds {listed or 'nothing'}"


def save_checkpoint(
    folder: str | os.PathLike[str],
    specs: Mapping[str, TensorSpec],
    read: ReadTensor,
    *,
    format: str = "safetensors",
    max_shard_size: int | str = "5GB",
    extra_files: Mapping[str, str | bytes] | None = None,
    architecture: str | None = None,
    progress: Callable[[int], None] | None = None,
    replaces: Callable[[str], bool] | None = None,
    resume: str | None = None,
    twins: Mapping[str, str] | None = None,
    last_files: Callable[[Mapping[str, int]], Mapping[str, str | bytes]] | None = None,
) -> list[Path]:
    """Save weights and the files that go with them, all or nothing.

    Earlier weights of the same format in the folder go; its other files stay, but for those that
    ``replaces`` names. A save that fails or is killed leaves the folder as it was.

    Args:
        folder: The folder; it is made when missing.
        specs: The tensors, with names spelled as the format spells them (`Format.spelling`).
        read: Gives the array of a name, or its `Rows`, in the layout of the format; called once
            per name.
        format: ``safetensors``, ``pt``, ``tf`` or ``flax``.
        max_shard_size: Most bytes in one file, as an int or a text like ``"500MB"``.
        extra_files: Name and content of other files, such as ``config.json``.
        architecture: Class of the model, such as ``XGLMForCausalLM``; the h5 format needs it.
        progress: Called with numbers of bytes as they are written.
        replaces: Tells which other files of the folder go as well.
        resume: Says what is being saved and from what, in up to 64 letters and digits. A save
            that was killed is taken up again by the next one that says the same.
        twins: Names for which ``read`` gives what it gives for another, with the other's name; for
            formats that store such tensors once.
        last_files: Gives more files like ``extra_files`` when all else is written, from the bytes
            of each file by name.

    Returns:
        The paths of the written files.

    Raises:
        CheckpointError: The folder cannot be written, or a tensor cannot be stored.
    """
    form = get_format(format)
    extra = dict(extra_files or {})
    _check_extra_names(extra, form)
    shards = deal(specs, parse_size(max_shard_size), twins)

    target = Path(folder).expanduser()
    with (
        atomic_folder(
            target,
            replaces=lambda name: (
                form.owns(name) or name in REPORT_FILES or bool(replaces and replaces(name))
            ),
            resume=resume,
        ) as temporary,
        _journal(temporary, resume) as journal,
    ):

        def write(name: str, specs: Mapping[str, TensorSpec], shard: bool) -> None:
            path = temporary / name
            exists = journal is not None and bool(journal.tensors(name))
            layout = form.load().lay_out(
                path, specs, shard=shard, architecture=architecture, exists=exists
            )
            fill(path, layout, specs, read, journal, progress)
            if journal is not None:
                journal.sync(path)

        total = sum(spec.nbytes for name, spec in specs.items() if name not in (twins or {}))
        written = _write_shards(temporary, form, shards, write, architecture, total)
        written += _write_extra(temporary, extra)
        if last_files is not None:
            sizes = {name: (temporary / name).stat().st_size for name in written}
            last = dict(last_files(sizes))
            _check_extra_names(last, form)
            written += _write_extra(temporary, last)
    return [target / name for name in written]


@contextlib.contextmanager
def _journal(folder: Path, key: str | None) -> Iterator[Journal | None]:
    if key is None:
        yield None
        return
    journal = Journal(folder, key)
    try:
        yield journal
    finally:
        journal.close()


def _write_extra(folder: Path, files: Mapping[str, str | bytes]) -> list[str]:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return list(files)


def _check_extra_names(extra: Mapping[str, str | bytes], form: Format) -> None:
    bad = [name for name in extra if not is_plain_name(name) or form.owns(name)]
    if bad:
        raise CheckpointError(
            f"extra_files has {bad[0]!r}; the names must be plain file names other than those of "
            "the weights"
        )


def _write_shards(
    folder: Path,
    form: Format,
    shards: list[dict[str, TensorSpec]],
    write: Callable[[str, Mapping[str, TensorSpec], bool], None],
    architecture: str | None,
    total: int,
) -> list[str]:
    if len(shards) == 1:
        write(form.single, shards[0], False)
        return [form.single]
    module = form.load()
    weight_map: dict[str, str] = {}
    written = []
    for number, shard in enumerate(shards, start=1):
        name = form.shard(number, len(shards))
        write(name, shard, True)
        weight_map |= {module.index_name(tensor, architecture): name for tensor in shard}
        written.append(name)
    (folder / form.index).write_text(index_text(weight_map, total), encoding="utf-8")
    return [*written, form.index]
