"""The second half of a conversion: an open, checked checkpoint into the files of a target."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam import __version__
from xlmfam.common.checkpoints.atomic import atomic_folder, leftovers
from xlmfam.common.checkpoints.files import get_format, save_checkpoint
from xlmfam.common.checkpoints.models import (
    FORMAT_SPELLINGS,
    ParameterReader,
    model_files,
    stored_parameters,
    twins_in,
    warn_of_others,
)
from xlmfam.common.checkpoints.shards import deal, parse_size
from xlmfam.common.checkpoints.source import TensorSource, TensorSpec
from xlmfam.common.configs.base import CONFIG_NAME
from xlmfam.common.errors import CheckpointError
from xlmfam.common.generation import GENERATION_CONFIG_NAME, GenerationConfig
from xlmfam.common.parameters import Parameter, spell
from xlmfam.common.parameters.spelling import is_transposed
from xlmfam.conversion.report import SourceFile, readable_size
from xlmfam.conversion.streaming import Carried, Reading, Sums, bytes_of, not_finite, sum_of
from xlmfam.conversion.targets import Work, target_module

# What is written when all else is: from the bytes of each file by name, more files.
LastFiles = Callable[[Mapping[str, int]], Mapping[str, bytes]]


@dataclass
class Written:
    """What is known of the parameters when they are written.

    Attributes:
        sums: SHA-256 of each parameter's bytes in canonical layout, by canonical name.
        places: The names that each has in the target, with the file.
        not_finite: Number of values that are infinite or no number, by canonical name.
        turned: Canonical names of those that lie transposed against the source.
        resumed: Number of parameters that an earlier attempt had written.
    """

    sums: dict[str, str] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    turned: set[str] = field(default_factory=set)
    resumed: int = 0


@dataclass(frozen=True)
class Beside:
    """What goes into the target's folder with the weights, and out of it.

    Attributes:
        options: Options of ``generate``.
        replaces: Which other files of the folder go.
        last_files: See `LastFiles`.
    """

    options: GenerationConfig | None
    replaces: Callable[[str], bool]
    last_files: LastFiles


def write_format(
    work: Work,
    format: str,
    written: Written,
    beside: Beside,
    settings: Mapping[str, Any],
) -> list[Path]:
    """Write one of the four file formats, in bounded memory; goes on where a killed run was.

    Args:
        work: What is to be written, and where.
        format: ``safetensors``, ``pt``, ``tf`` or ``flax``.
        written: Filled in.
        beside: What goes with the weights.
        settings: What was asked for, ``max_shard_size`` among it; a conversion of which something
            else was asked does not go on where this one was.
    """
    stored = stored_parameters(work.config, work.head, format)
    max_shard_size = settings["max_shard_size"]
    with Sums() as sums:
        carried, rows = _carried(work.reader, stored, format, sums)
        specs = {name: row.spec for name, row in rows.items()}
        _note_places(written, stored, specs, format, max_shard_size)
        _require_room(work.folder, {id(r): r.spec.nbytes for r in rows.values()}.values())
        main_dtype = next(iter(specs.values())).dtype.name
        extra = model_files(work.config, work.head, main_dtype, beside.options)
        warn_of_others(work.folder, format)

        def finish(sizes: Mapping[str, int]) -> Mapping[str, bytes]:
            sums.wait()
            written.sums |= {name: row.sha256 or "" for name, row in carried.items()}
            written.not_finite |= {name: row.not_finite for name, row in carried.items()}
            written.turned |= {name for name, row in carried.items() if row.turned}
            written.resumed = sum(row.resumed for row in carried.values())
            return beside.last_files(sizes)

        return save_checkpoint(
            work.folder,
            specs,
            rows.__getitem__,
            format=format,
            max_shard_size=max_shard_size,
            extra_files={**work.tokenizer_files, **extra},
            architecture=work.head.partition("(")[0],
            progress=work.progress,
            replaces=beside.replaces,
            resume=_key(work.reader, specs, settings),
            twins=twins_in(stored, format),
            last_files=finish,
        )


def _carried(
    reader: ParameterReader,
    stored: Mapping[str, tuple[Parameter, Parameter]],
    format: str,
    sums: Sums,
) -> tuple[dict[str, Carried], dict[str, Carried]]:
    """What every parameter is read through, by canonical name and by name in the file."""
    spelling = FORMAT_SPELLINGS[format]
    carried: dict[str, Carried] = {}
    rows: dict[str, Carried] = {}
    for name, (parameter, origin) in stored.items():
        reading = Reading(
            reader.source, reader.plan.sources[origin.name], origin, _dtype_of(reader, origin.name)
        )
        turned = reading.is_turned != is_transposed(parameter, spelling)
        row = carried.get(origin.name)
        # One and the same object is one and the same tensor for formats that know such.
        if row is None or row.turned != turned:
            row = Carried(reading, turned, sums)
        carried.setdefault(origin.name, row)
        rows[name] = row
    return carried, rows


def _dtype_of(reader: ParameterReader, name: str) -> np.dtype:
    return reader.dtype or reader.source.specs()[reader.plan.sources[name]].dtype


def _note_places(
    written: Written,
    stored: Mapping[str, tuple[Parameter, Parameter]],
    specs: Mapping[str, TensorSpec],
    format: str,
    max_shard_size: int | str,
) -> None:
    form = get_format(format)
    shards = deal(specs, parse_size(max_shard_size), twins_in(stored, format))
    for number, shard in enumerate(shards, start=1):
        file = form.single if len(shards) == 1 else form.shard(number, len(shards))
        for name in shard:
            written.places.setdefault(stored[name][1].name, []).append((name, file))


def _require_room(folder: Path, sizes: Any) -> None:
    """Refuse before the first byte what cannot be written to the last."""
    needed, folder = sum(sizes), folder.expanduser().resolve()
    above = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        disk = shutil.disk_usage(above)
        # What a killed attempt has left is gone on with, or swept away.
        old = [file for left in leftovers(folder) for file in left.rglob("*") if file.is_file()]
        left_over = sum(min(s.st_size, s.st_blocks * 512) for s in map(os.stat, old))
    except OSError:
        return
    if disk.total and needed > disk.free + left_over:
        raise CheckpointError(
            f"{folder}: no space left on the disk: the weights take {readable_size(needed)}, and "
            f"{readable_size(disk.free)} are free; nothing was written"
        )


def source_files(source: TensorSource) -> list[SourceFile]:
    """Return what tells the files of a checkpoint from others, and from themselves if changed."""
    paths = source.files()
    if not all(path.exists() for path in paths):  # the prefix of a TensorFlow checkpoint
        paths = sorted(p for path in paths for p in path.parent.glob(f"{glob.escape(path.name)}*"))
    found = [(path, os.stat(path)) for path in paths if path.is_file()]
    return [SourceFile(p.name, s.st_size, s.st_mtime_ns, s.st_ino) for p, s in found]


def _key(
    reader: ParameterReader, specs: Mapping[str, TensorSpec], settings: Mapping[str, Any]
) -> str:
    """What two conversions have in common of which one may go on where the other was."""
    facts = {
        "version": __version__,
        "source": [vars(file) for file in source_files(reader.source)],
        "stored": reader.plan.sources,
        "tensors": [[name, spec.shape, spec.dtype.name] for name, spec in specs.items()],
        "settings": dict(settings),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class SummedReader(ParameterReader):
    """A reader that takes the checksum of what it gives; for targets that read for themselves."""

    def __init__(self, reader: ParameterReader):
        super().__init__(reader.parameters, reader.plan, reader.source, reader.layout, reader.dtype)
        self.sums: dict[str, str] = {}
        self.not_finite: dict[str, int] = {}

    def read(self, name: str) -> np.ndarray:
        """See `ParameterReader.read`."""
        array = super().read(name)
        if name not in self.sums:
            self.sums[name] = hashlib.sha256(bytes_of(np.asarray(array, order="C"))).hexdigest()
            self.not_finite[name] = not_finite(array)
        return array

    def complete(self) -> dict[str, str]:
        """Return the checksums of all, also of what the target has read in another way."""
        for name, stored in self.plan.sources.items():
            if name not in self.sums:
                reading = Reading(self.source, stored, self.parameters[name], _dtype_of(self, name))
                self.sums[name] = sum_of(reading.canonical())
                self.not_finite[name] = sum(map(not_finite, reading.canonical()))
        return self.sums


def write_target(to: str, work: Work, written: Written, beside: Beside) -> list[Path]:
    """Write one of `TARGETS`, all or nothing and always anew; arguments as in `write_format`."""
    target = work.folder.expanduser()
    reader = SummedReader(work.reader)
    work.reader = reader
    config = type(work.config).from_dict(work.config.to_dict())
    config.architectures = [work.head.partition("(")[0]]
    with atomic_folder(target, replaces=beside.replaces) as temporary:
        work.folder = temporary
        target_module(to).write(work)
        texts: dict[str, str] = {CONFIG_NAME: config.to_json_string()}
        if beside.options is not None:
            texts[GENERATION_CONFIG_NAME] = beside.options.to_json_string()
        files: dict[str, bytes] = {name: text.encode() for name, text in texts.items()}
        for name, content in {**work.tokenizer_files, **files}.items():
            if not (temporary / name).exists():
                (temporary / name).write_bytes(content)
        written.sums |= reader.complete()
        written.not_finite |= reader.not_finite
        sizes = {
            path.relative_to(temporary).as_posix(): path.stat().st_size
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        last = beside.last_files(sizes)
        for name, content in last.items():
            (temporary / name).write_bytes(content)
    return [target / name for name in (*sizes, *last)]


def untrue_ties(source: TensorSource, reader: ParameterReader) -> list[str]:
    """Weights that the config calls shared and the file stores with values of their own."""
    by_full_name = {p.full_name: p for p in reader.parameters.values()}
    warnings = []
    for parameter in reader.parameters.values():
        stored = spell(parameter, source.spelling, prefixed=True)
        if parameter.tied_to is None or stored not in reader.plan.dropped:
            continue
        origin = by_full_name[parameter.tied_to]
        own = Reading(source, stored, parameter)
        shared = Reading(source, reader.plan.sources[origin.name], origin)
        if not _same(own, shared):
            warnings.append(
                f"{stored} differs from {origin.name}, which the config says it shares: its values "
                "are lost. If they count, set tie_word_embeddings to false in config.json"
            )
    return warnings


def _same(one: Reading, other: Reading) -> bool:
    if one.source.is_same(one.stored, other.stored):
        return True
    if one.spec(one.is_turned) != other.spec(other.is_turned):
        return False
    blocks = zip(one.canonical(), other.canonical(), strict=True)
    return all(bytes_of(np.asarray(a)) == bytes_of(np.asarray(b)) for a, b in blocks)
