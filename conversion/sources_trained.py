"""Checkpoints that users of xlmfam trained: Orbax folders, ``.weights.h5`` and ``.keras`` files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlmfam.common.checkpoints.files import FORMATS
from xlmfam.common.checkpoints.source import TensorSource
from xlmfam.common.configs import AutoConfig, PretrainedConfig
from xlmfam.common.configs.auto import config_class
from xlmfam.common.configs.base import CONFIG_NAME
from xlmfam.common.errors import CheckpointError, ConfigError
from xlmfam.common.parameters import table_of
from xlmfam.conversion.formats import keras_files, orbax

TRAINED = ("orbax", "keras")
_FOLDERS_ABOVE = 3  # where a config may lie: beside the steps, the items or the arrays


@dataclass
class Trained:
    """An open checkpoint of one of `TRAINED`; nothing but headers is read yet.

    Attributes:
        format: ``orbax`` or ``keras``.
        config: Its config.
        head: Its class, where the config or the file says.
        source: Its parameters.
        dropped: Names of what is no part of the model, with the reason.
        generation_options: What a ``.keras`` file says of how to generate.
    """

    format: str
    config: PretrainedConfig
    head: str | None
    source: TensorSource
    dropped: Mapping[str, str] = field(default_factory=dict)
    generation_options: dict[str, Any] | None = None


def open_trained(
    name_or_path: str | os.PathLike[str],
    *,
    head: str | None = None,
    format: str | None = None,
    config: PretrainedConfig | None = None,
) -> Trained | None:
    """Open what Orbax or Keras wrote.

    Args:
        name_or_path: A file, or a folder with one; a name on the hub is none of these.
        head: Its class; by default what the file or its config says.
        format: Only ``orbax`` or ``keras``; by default either, and a folder that holds another
            known format is none of these.
        config: Its config; by default that of the file, or ``config.json`` beside or above.

    Returns:
        ``None`` for anything else.

    Raises:
        CheckpointError: It is one of these and damaged.
        ConfigError: There is no config for it.
        MissingPackageError: What reads it is not installed.
    """
    path = Path(name_or_path).expanduser()
    if not path.exists() or (format is None and _has_known_format(path)):
        return None
    file = _keras_file(path) if format in (None, "keras") else None
    if file is not None:
        return _open_keras(file, head, config)
    folder = orbax.find(path) if format in (None, "orbax") else None
    if folder is None:
        if format is not None:
            raise CheckpointError(f"{path}: holds no checkpoint in the format {format}")
        return None
    config = config or _config_near(folder)
    source = orbax.OrbaxSource(folder)
    return Trained("orbax", config, head, source, source.dropped)


def _has_known_format(path: Path) -> bool:
    """Whether a folder has weights that are found without looking further."""
    if not path.is_dir():
        return False
    names = os.listdir(path)
    return any(form.owns(name) for form in FORMATS.values() for name in names)


def _keras_file(path: Path) -> Path | None:
    endings = (keras_files.WEIGHTS_ENDING, keras_files.MODEL_ENDING)
    if path.is_file():
        return path if path.name.endswith(endings) else None
    found = sorted(entry for entry in path.iterdir() if entry.name.endswith(endings))
    # Of one model and its weights by themselves, either will do.
    alone = [entry for entry in found if entry.name.endswith(keras_files.WEIGHTS_ENDING)] or found
    if len(alone) > 1:
        names = ", ".join(entry.name for entry in alone)
        raise CheckpointError(f"{path}: holds {names}; name the file to read")
    return alone[0] if alone else None


def _config_near(path: Path) -> PretrainedConfig:
    """Read the nearest ``config.json`` in a folder or those above it."""
    above = [path, *path.absolute().parents][: _FOLDERS_ABOVE + 1]
    for folder in above:
        if (folder / CONFIG_NAME).is_file():
            return AutoConfig.from_pretrained(folder)
    raise ConfigError(
        f"{path} says nothing of its model: put the model's {CONFIG_NAME} beside it "
        "(model.config.save_pretrained writes it)"
    )


def _open_keras(file: Path, head: str | None, config: PretrainedConfig | None) -> Trained:
    options: dict[str, Any] | None = None
    if file.name.endswith(keras_files.MODEL_ENDING):
        about = keras_files.read_config(file)
        settings = about["config"]
        config = config or _from_settings(settings["config"], file)
        head = head or _class_name(about, config)
        if isinstance(settings.get("generation_config"), dict):
            options = settings["generation_config"]
    config = config or _config_near(file.parent)
    source = keras_files.KerasSource(file)
    try:
        head = _name(source, config, head or _named(config))
    except BaseException:
        source.close()
        raise
    return Trained("keras", config, head, source, source.dropped, options)


def _from_settings(settings: dict[str, Any], file: Path) -> PretrainedConfig:
    try:
        return config_class(settings.get("model_type")).from_dict(settings)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _class_name(about: dict[str, Any], config: PretrainedConfig) -> str | None:
    name = str(about.get("class_name"))
    table = table_of(config.model_type)
    return name if name in (table.base, *table.heads) else None


def _named(config: PretrainedConfig) -> str | None:
    from xlmfam.conversion.sources import named_class

    return named_class(config)


def _name(source: keras_files.KerasSource, config: PretrainedConfig, head: str | None) -> str:
    """Name the arrays as the table does; return the class that they are of."""
    table = table_of(config.model_type)
    if head is not None:
        table.check_class(head)
    every = (table.base, *table.headless, *table.heads)
    # A class that lacks some of its layers goes by the same name to the user.
    likely = [name for name in every if head in (None, name, name.partition("(")[0])]
    for name in likely:
        if source.name_by(table.expand(config, name)):
            return name
    source.name_by(table.expand(config, likely[0]))
    return likely[0]
