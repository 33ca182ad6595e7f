"""Opening a checkpoint whose family and class are not known beforehand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlmfam.common.checkpoints.files import FORMATS, open_checkpoint
from xlmfam.common.checkpoints.source import TensorSource
from xlmfam.common.configs import AutoConfig, PretrainedConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import LoadPlan, Table, plan_loading, table_of
from xlmfam.conversion.originals import RELEASES, open_original
from xlmfam.conversion.originals.base import Original
from xlmfam.conversion.sources_trained import TRAINED, Trained, open_trained

# What transformers puts before the class names of its other frameworks.
_CLASS_PREFIXES = ("TF", "Flax")


@dataclass
class OpenCheckpoint:
    """A checkpoint that has been recognised; nothing but headers is read yet.

    Attributes:
        name: What the user called it.
        config: Its config.
        table: The parameter table of its family.
        head: Name of its class.
        source: The open weights.
        format: ``safetensors``, ``pt``, ``tf`` or ``flax``, or the original release, or ``orbax``
            or ``keras``.
        original: What an original release brings besides its weights.
        dropped: Names in the file that are no part of the model, with the reason.
        generation_options: What the file itself says of how to generate.
    """

    name: str
    config: PretrainedConfig
    table: Table
    head: str
    source: TensorSource
    format: str
    original: Original | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    generation_options: dict[str, Any] | None = None

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()

    def plan(self) -> LoadPlan:
        """Hold the file against the table; see `plan_loading` for what is raised."""
        plan = plan_loading(
            self.table, self.config, self.head, self.source.specs(), self.source.spelling
        )
        plan.dropped |= self.dropped
        return plan


def recognise(
    name_or_path: str | os.PathLike[str],
    *,
    head: str | None = None,
    format: str | None = None,
    **hub: Any,
) -> OpenCheckpoint:
    """Open a checkpoint and find out what it is.

    Args:
        name_or_path: Folder, file of weights, or hub id.
        head: Its class; by default what the config says, or else what the weights are like.
        format: Look only for this file format.
        **hub: Where on the hub to look.

    Raises:
        CheckpointError: When nothing is there, or it is damaged or of no known class.
        ConfigError: When its config is missing or of a family that is not ours.
    """
    original = open_original(name_or_path) if format in (None, *RELEASES) else None
    if original is not None:
        return OpenCheckpoint(
            os.fspath(name_or_path),
            original.config,
            table_of(original.config.model_type),
            head or original.head,
            original.source,
            original.release,
            original,
        )
    # Not before: a checkpoint of TensorFlow 1 goes by what the names of its files begin with.
    _require_something(name_or_path)
    if format in (None, *TRAINED):
        trained = open_trained(name_or_path, head=head, format=format)
        if trained is not None:
            return _of_trained(os.fspath(name_or_path), trained)
    config = AutoConfig.from_pretrained(name_or_path, **hub)
    table = table_of(config.model_type)
    if head is not None:
        table.check_class(head)
    source = open_checkpoint(name_or_path, format=format, **hub)
    try:
        head = head or named_class(config, table) or _class_that_fits(config, table, source)
    except BaseException:
        source.close()
        raise
    return OpenCheckpoint(os.fspath(name_or_path), config, table, head, source, format_of(source))


def _of_trained(name: str, trained: Trained) -> OpenCheckpoint:
    config, source, table = trained.config, trained.source, table_of(trained.config.model_type)
    try:
        if trained.head is not None:
            table.check_class(trained.head)
        head = trained.head or named_class(config, table) or _class_that_fits(config, table, source)
    except BaseException:
        source.close()
        raise
    return OpenCheckpoint(
        name,
        config,
        table,
        head,
        source,
        trained.format,
        dropped=trained.dropped,
        generation_options=trained.generation_options,
    )


def _require_something(name_or_path: str | os.PathLike[str]) -> None:
    # A path with a typo would otherwise be asked for on the hub, which takes long to say no.
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_like_path and not path.exists():
        raise CheckpointError(f"{name}: there is no such file or folder")


def named_class(config: PretrainedConfig, table: Table | None = None) -> str | None:
    """Return the class that the config names, without a framework's prefix; ``None`` if none.

    Raises:
        CheckpointError: When it is no class of the family.
    """
    table = table or table_of(config.model_type)
    if not config.architectures:
        return None
    name = str(config.architectures[0])
    for prefix in _CLASS_PREFIXES:
        name = name.removeprefix(prefix)
    if name not in (table.base, *table.heads):
        known = ", ".join((table.base, *table.heads))
        raise CheckpointError(
            f"the config names the class {config.architectures[0]!r}; family {table.family} has "
            f"{known}"
        )
    return name


def _class_that_fits(config: PretrainedConfig, table: Table, source: TensorSource) -> str:
    """The class whose parameters are just those of the file."""
    specs = source.specs()
    has_prefix = any(name.startswith((f"{table.prefix}.", f"{table.prefix}/")) for name in specs)
    # Where a head shares all its parameters, only the spelling of the names tells.
    order = (*table.heads, table.base) if has_prefix else (table.base, *table.heads)
    for head in order:
        try:
            plan = plan_loading(table, config, head, specs, source.spelling)
        except CheckpointError:
            continue
        if not plan.new and not any(r.startswith("belongs to") for r in plan.dropped.values()):
            return head
    return order[0]


def format_of(source: TensorSource) -> str:
    """Return the name of the file format of an open checkpoint."""
    path = Path(getattr(source, "path"))  # noqa: B009  (every reader has it; the protocol does not)
    name = path.name.removesuffix(".index.json")
    for key, form in FORMATS.items():
        if name.endswith((form.ending, *form.other_endings)):
            return key
    raise CheckpointError(f"{path}: not a file of weights")


def file_of(source: TensorSource) -> Path:
    """Return the file, or the index of shards, that was opened."""
    return Path(getattr(source, "path"))  # noqa: B009
