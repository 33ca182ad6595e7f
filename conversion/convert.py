"""Rewriting a checkpoint in another file format, one tensor at a time and with no framework."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.atomic import atomic_folder
from xlmfam.common.checkpoints.files import FORMATS, get_format
from xlmfam.common.checkpoints.locate import resolve_file
from xlmfam.common.checkpoints.models import (
    ParameterReader,
    as_dtype,
    load_generation_config,
    save_parameters,
)
from xlmfam.common.checkpoints.shards import parse_size
from xlmfam.common.checkpoints.source import DTYPES
from xlmfam.common.configs import XmodConfig
from xlmfam.common.configs.base import CONFIG_NAME
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.generation import GENERATION_CONFIG_NAME, GenerationConfig
from xlmfam.common.languages import language_id
from xlmfam.common.parameters import Parameter, relayout, spell
from xlmfam.conversion.report import Conversion
from xlmfam.conversion.sources import OpenCheckpoint, recognise
from xlmfam.conversion.targets import TARGETS, Work, target_module

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
    **hub: Any,
) -> Conversion:
    """Write a checkpoint into a new folder in another format.

    The weights are held against the family's table first, so a damaged or foreign checkpoint is
    refused with nothing written. Config, generation options and tokenizer go along.

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
    with recognise(source, head=head, format=source_format, **hub) as checkpoint:
        if languages is not None:
            checkpoint.config = _only(checkpoint.config, languages)
        reader = checked_reader(checkpoint, kind)
        specs = checkpoint.source.specs()
        stored = {name: specs[spelled].dtype for name, spelled in reader.plan.sources.items()}
        copied = tokenizer_content(checkpoint, source, hub)
        options = _generation_options(checkpoint, source, hub)
        total = sum(p.size for p in reader.parameters.values())
        with _bar(total * (kind or DTYPES["float32"]).itemsize, progress) as tell:
            work = Work(
                checkpoint.config, checkpoint.head, reader, Path(target), dict(copied), tell
            )
            paths = (
                write_target(to, work, options)
                if to in TARGETS
                else save_parameters(
                    target,
                    checkpoint.config,
                    checkpoint.head,
                    "canonical",
                    lambda parameter: reader.read(parameter.name),
                    lambda parameter: kind or stored[parameter.name],
                    format=to,
                    max_shard_size=max_shard_size,
                    generation_config=options,
                    extra_files=copied,
                    progress=tell,
                    replaces=belongs_to_checkpoint(checkpoint.config.model_type),
                )
            )
        dtypes = Counter((kind or own).name for own in stored.values())
        return Conversion(
            source=os.fspath(source),
            target=Path(target),
            family=checkpoint.config.model_type,
            head=checkpoint.head,
            source_format=checkpoint.format,
            format=to,
            files={_name_in(path, target): path.stat().st_size for path in paths},
            tensors=len(stored),
            parameters=sum(reader.parameters[name].size for name in stored),
            dtypes=dict(dtypes),
            cast=sum(kind is not None and own != kind for own in stored.values()),
            dropped=reader.plan.dropped,
            copied=sorted(copied),
            warnings=_untrue_ties(checkpoint, reader),
            seconds=time.perf_counter() - started,
        )


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
    if resolve_file(folder_of(source), GENERATION_CONFIG_NAME, **hub) is None:
        return None
    return load_generation_config(source, checkpoint.config, **hub)


def write_target(to: str, work: Work, options: GenerationConfig | None) -> list[Path]:
    """Write one of `TARGETS` into ``work.folder``, all or nothing; returns the paths."""
    target = work.folder.expanduser()
    config = type(work.config).from_dict(work.config.to_dict())
    config.architectures = [work.head.partition("(")[0]]
    with atomic_folder(target, replaces=belongs_to_checkpoint(work.config.model_type)) as temporary:
        work.folder = temporary
        target_module(to).write(work)
        for name, content in work.tokenizer_files.items():
            if not (temporary / name).exists():
                (temporary / name).write_bytes(content)
        if not (temporary / CONFIG_NAME).exists():
            (temporary / CONFIG_NAME).write_text(config.to_json_string(), encoding="utf-8")
        if options is not None:
            text = options.to_json_string()
            (temporary / GENERATION_CONFIG_NAME).write_text(text, encoding="utf-8")
        names = [p.relative_to(temporary) for p in sorted(temporary.rglob("*")) if p.is_file()]
    return [target / name for name in names]


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
    names = {*_tokenizer_names(family), GENERATION_CONFIG_NAME}
    return lambda name: name in names or any(form.owns(name) for form in FORMATS.values())


def _untrue_ties(checkpoint: OpenCheckpoint, reader: ParameterReader) -> list[str]:
    """Weights that the config calls shared and the file stores with values of their own."""
    spelling = checkpoint.source.spelling
    by_full_name = {p.full_name: p for p in reader.parameters.values()}

    def read(parameter: Parameter, stored: str) -> np.ndarray:
        array = checkpoint.source.read(stored)
        return np.ascontiguousarray(relayout(array, parameter, spelling, "canonical"))

    warnings = []
    for parameter in reader.parameters.values():
        stored = spell(parameter, spelling, prefixed=True)
        if parameter.tied_to is None or stored not in reader.plan.dropped:
            continue
        origin = by_full_name[parameter.tied_to]
        own, shared = read(parameter, stored), read(origin, reader.plan.sources[origin.name])
        if own.shape != shared.shape or own.tobytes() != shared.tobytes():
            warnings.append(
                f"{stored} differs from {origin.name}, which the config says it shares: its values "
                "are lost. If they count, set tie_word_embeddings to false in config.json"
            )
    return warnings


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
