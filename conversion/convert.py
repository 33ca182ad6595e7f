"""Rewriting a checkpoint in another file format, one tensor at a time and with no framework."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.files import FORMATS, REPORT_FILES, get_format
from xlmfam.common.checkpoints.locate import resolve_file
from xlmfam.common.checkpoints.models import ParameterReader, as_dtype, load_generation_config
from xlmfam.common.checkpoints.shards import parse_size
from xlmfam.common.checkpoints.source import DTYPES
from xlmfam.common.configs import XmodConfig
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.generation import GENERATION_CONFIG_NAME, GenerationConfig
from xlmfam.common.languages import language_id
from xlmfam.conversion.report import MOST_NAMES_SHOWN, Conversion
from xlmfam.conversion.sources import OpenCheckpoint, recognise
from xlmfam.conversion.targets import TARGET_FILES, TARGETS, Work
from xlmfam.conversion.telling import report_files, weights_told
from xlmfam.conversion.writing import (
    Beside,
    Written,
    untrue_ties,
    write_format,
    write_target,
)

# What belongs to a tokenizer besides its vocabulary, in every family.
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)

_LARGEST_TOKENIZER_FILE = 2**27


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str = "safetensors",
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    languages: Sequence[str] | None = None,
    head: str | None = None,
    source_format: str | None = None,
    progress: bool | None = None,
    verify: bool = False,
    **hub: Any,
) -> Conversion:
    """Write a checkpoint into a new folder in another format.

    The weights are held against the family's table first, so a damaged or foreign checkpoint is
    refused with nothing written; so is a name that the table does not know. Config, generation
    options and tokenizer go along, and a report as ``conversion_report.json`` and ``.html``.

    Memory stays within a few hundred MB, whatever the size. A conversion that was killed is taken
    up by the next one of the same source with the same options.

    Args:
        source: Folder, file of weights, or hub id.
        target: The folder to write.
        to: ``safetensors``, ``pt``, ``tf`` or ``flax``; ``orbax``, ``keras``, ``savedmodel`` or
            ``onnx``; or ``original``, the files that the family's own code reads.
        dtype: Name of a floating-point dtype to cast to; by default each tensor keeps its own.
        max_shard_size: Larger checkpoints are split.
        overwrite: Replace a checkpoint in ``target``; its other files stay.
        languages: Codes of the languages to take along, of an X-MOD checkpoint; by default all.
        head: Class of the checkpoint where its config does not say or is wrong.
        source_format: Read only this format, for folders that hold several.
        progress: Show a progress bar; by default where standard error is a terminal.
        verify: Then run the result against the source; see `verify_conversion`.
        **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``.

    Returns:
        What went where.

    Raises:
        CheckpointError: When the source is missing, damaged or does not fit its config, or the
            target cannot be written.
        ConfigError: For a family or dtype that is not known.
        XlmfamError: For a language that is not known.
    """
    started = time.perf_counter()
    if to not in TARGETS:
        get_format(to)
    parse_size(max_shard_size)
    kind = None if dtype is None else as_dtype(dtype)
    check_target(source, target, overwrite)
    asked = {
        "to": to,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "languages": None if languages is None else list(languages),
        "head": head,
        "source_format": source_format,
    }
    with recognise(source, head=head, format=source_format, **hub) as checkpoint:
        if languages is not None:
            checkpoint.config = _only(checkpoint.config, languages)
        done = _carry_over(checkpoint, source, Path(target), to, asked, kind, hub, progress)
    done = replace(done, seconds=time.perf_counter() - started)
    return with_verification(done, **hub) if verify else done


def _carry_over(
    checkpoint: OpenCheckpoint,
    source: str | os.PathLike[str],
    target: Path,
    to: str,
    asked: dict[str, Any],
    kind: np.dtype | None,
    hub: dict[str, Any],
    progress: bool | None,
) -> Conversion:
    """Write an open checkpoint into a folder; arguments as in `convert`."""
    started = time.perf_counter()
    reader = checked_reader(checkpoint, kind)
    copied = tokenizer_content(checkpoint, source, hub)
    warnings = untrue_ties(checkpoint.source, reader)
    written, told = Written(), []

    def last_files(sizes: Mapping[str, int]) -> dict[str, bytes]:
        told.append(
            Conversion(
                source=os.fspath(source),
                target=target,
                files=dict(sizes),
                copied=sorted(copied),
                warnings=[*warnings, *_not_finite(written, reader)],
                seconds=time.perf_counter() - started,
                options=asked,
                **weights_told(checkpoint, reader, to, written),
            )
        )
        return report_files(told[-1])

    beside = Beside(
        _generation_options(checkpoint, source, hub),
        belongs_to_checkpoint(checkpoint.config.model_type),
        last_files,
    )
    total = sum(p.size for p in reader.parameters.values())
    with _bar(total * (kind or DTYPES["float32"]).itemsize, progress) as tell:
        work = Work(checkpoint.config, checkpoint.head, reader, target, dict(copied), tell)
        if to in TARGETS:
            paths = write_target(to, work, written, beside)
        else:
            paths = write_format(work, to, written, beside, asked)
    return replace(told[-1], files={_name_in(p, target): p.stat().st_size for p in paths})


def with_verification(conversion: Conversion, **options: Any) -> Conversion:
    """Run what was written against its source, and add what was found to the report.

    Args:
        conversion: What `convert` returned.
        **options: For `verify_conversion`.

    Returns:
        The conversion with its ``verification``.
    """
    from xlmfam.conversion.verify import verify_conversion

    found = replace(conversion, verification=verify_conversion(conversion, **options))
    folder = conversion.target.expanduser()
    for name, content in report_files(found).items():
        beside = folder / f".{name}.new"
        beside.write_bytes(content)
        os.replace(beside, folder / name)
    return found


def _not_finite(written: Written, reader: ParameterReader) -> list[str]:
    """What to say of values that no trained model has."""
    found = {name: count for name, count in written.not_finite.items() if count}
    shown = [
        f"{name}: {count} of its {reader.parameters[name].size} values are infinite or no number"
        for name, count in list(found.items())[:MOST_NAMES_SHOWN]
    ]
    more = len(found) - len(shown)
    return [*shown, f"... and so in {more} more tensors"] if more else shown


def tokenizer_content(
    checkpoint: OpenCheckpoint, source: str | os.PathLike[str], hub: dict[str, Any]
) -> dict[str, bytes]:
    """Return the tokenizer's files by name, of an original release those made from its own."""
    if checkpoint.original is not None:
        return dict(checkpoint.original.tokenizer_files)
    found = tokenizer_files(source, checkpoint.config.model_type, hub)
    return {name: _tokenizer_file(path) for name, path in found.items()}


def _tokenizer_file(path: Path) -> bytes:
    """Return the content of a file that is copied as it is."""
    real = path.resolve()
    # In the hub's cache all files are such links; elsewhere they could be to anything at all.
    cached = any(real.parent == parent / "blobs" for parent in path.parent.resolve().parents)
    if path.is_symlink() and not cached and not real.is_relative_to(path.parent.resolve()):
        raise CheckpointError(
            f"{path}: is a link out of its folder, to {real}; it is not copied. Put the file "
            "itself there"
        )
    size = path.stat().st_size
    if size > _LARGEST_TOKENIZER_FILE:
        raise CheckpointError(f"{path}: has {size} bytes, too many for a file of a tokenizer")
    return path.read_bytes()


def _generation_options(
    checkpoint: OpenCheckpoint, source: str | os.PathLike[str], hub: dict[str, Any]
) -> GenerationConfig | None:
    if checkpoint.original is not None:
        return None
    if checkpoint.generation_options is not None:
        return GenerationConfig.from_dict(checkpoint.generation_options)
    if resolve_file(folder_of(source), GENERATION_CONFIG_NAME, **hub) is None:
        return None
    return load_generation_config(source, checkpoint.config, **hub)


def _name_in(path: Path, folder: str | os.PathLike[str]) -> str:
    return path.relative_to(Path(folder).expanduser()).as_posix()


def _only(config: Any, languages: Sequence[str]) -> XmodConfig:
    """Return the config of a copy that has some of the languages."""
    if not isinstance(config, XmodConfig):
        raise XlmfamError(
            f"languages are X-MOD's to choose; this checkpoint is {config.model_type}"
        )
    for code in languages:
        language_id(config, code)
    gone = config.default_language not in languages
    changed = XmodConfig.from_dict(
        config.to_dict(),
        languages=list(dict.fromkeys(languages)),
        default_language=None if gone else config.default_language,
    )
    changed._stored = config
    return changed


def check_target(
    source: str | os.PathLike[str], target: str | os.PathLike[str], overwrite: bool
) -> None:
    """Raise ``CheckpointError`` unless ``target`` is a folder that may be written."""
    path = Path(target).expanduser()
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"target {path} is a file; it must be a folder")
    origin = Path(source).expanduser()
    if origin.exists():
        folder = (origin.parent if origin.is_file() else origin).resolve()
        resolved = path.resolve()
        if resolved == folder or folder in resolved.parents or resolved in folder.parents:
            where = "is the source's own folder" if resolved == folder else "and source overlap"
            raise CheckpointError(f"target {path} {where}; give a folder elsewhere")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise CheckpointError(
            f"target {path} exists and is not empty; choose another, or pass overwrite (--overwrite"
            " on the command line) to replace the checkpoint in it"
        )


def checked_reader(checkpoint: OpenCheckpoint, kind: np.dtype | None) -> ParameterReader:
    """Return the weights, checked against the table, in canonical layout."""
    plan = checkpoint.plan()
    if plan.new:
        raise CheckpointError(
            f"{checkpoint.name}: the weights of {checkpoint.head} lack {', '.join(plan.new)}; a "
            f"conversion invents nothing. If this is a {checkpoint.table.base}, say so with "
            f"head={checkpoint.table.base!r} (--class on the command line)"
        )
    parameters = checkpoint.table.expand(checkpoint.config, checkpoint.head)
    specs = checkpoint.source.specs()
    for name in plan.sources.values():
        if not specs[name].dtype.name.startswith(("float", "bfloat")):
            raise CheckpointError(
                f"{checkpoint.name}: {name} holds {specs[name].dtype.name}; parameters must be "
                "floating-point"
            )
    return ParameterReader(parameters, plan, checkpoint.source, "canonical", kind)


def folder_of(source: str | os.PathLike[str]) -> str:
    """Return the folder of a file of weights, or the source as it is."""
    path = Path(source).expanduser()
    return os.fspath(path.parent if path.is_file() else source)


def _tokenizer_names(family: str) -> tuple[str, ...]:
    """Names of all files that a tokenizer of the family may have."""
    from xlmfam.common.tokenizers.auto import TOKENIZERS, _load

    names = dict.fromkeys(TOKENIZER_FILES)
    for target in TOKENIZERS.get(family, ()):
        if target is not None:
            names |= dict.fromkeys(_load(target).vocab_files_names.values())
    return tuple(names)


def tokenizer_files(
    source: str | os.PathLike[str], family: str, hub: dict[str, Any]
) -> dict[str, Path]:
    """Return the tokenizer's files of a checkpoint, by name."""
    found = {
        name: resolve_file(folder_of(source), name, **hub) for name in _tokenizer_names(family)
    }
    return {name: path for name, path in found.items() if path is not None}


def belongs_to_checkpoint(family: str) -> Callable[[str], bool]:
    """Which files of an earlier checkpoint must not outlive it: they would be read with ours."""
    own = (GENERATION_CONFIG_NAME, *REPORT_FILES, *TARGET_FILES)
    names = {*_tokenizer_names(family), *own}
    return lambda name: name in names or any(form.owns(name) for form in FORMATS.values())


@contextmanager
def _bar(total: int, enabled: bool | None) -> Iterator[Callable[[int], None] | None]:
    """A progress bar in bytes, where somebody watches."""
    if enabled is None:
        enabled = sys.stderr.isatty()
    if not enabled:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="Converting", unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update
