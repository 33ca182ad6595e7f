"""Adding languages to an X-MOD checkpoint and taking them out, with no framework.

Pfeiffer et al. 2022, section 3.3: a language that a model was not trained with gets adapters
afterwards; everything else stays as it is.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.locate import resolve_file
from xlmfam.common.checkpoints.models import load_generation_config, save_parameters
from xlmfam.common.configs import XmodConfig
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.generation import GENERATION_CONFIG_NAME
from xlmfam.common.parameters import Kind, Parameter
from xlmfam.conversion.convert import (
    belongs_to_checkpoint,
    check_target,
    checked_reader,
    folder_of,
    tokenizer_files,
)
from xlmfam.conversion.sources import OpenCheckpoint, recognise


def change_languages(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    init_from: str = "random",
    default_language: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    **hub: Any,
) -> list[Path]:
    """Write a copy of an X-MOD checkpoint with other languages, one tensor at a time.

    Args:
        source: Folder, file of weights, or hub id.
        target: The folder to write.
        add: Codes of languages that get new adapters.
        remove: Codes of languages whose adapters are left out.
        init_from: What new adapters begin as: ``random``, the ``mean`` of those that there are,
            or the language to copy.
        default_language: Code of the language of texts that do not say theirs; by default what it
            was, if that stays.
        seed: Makes random beginnings repeatable.
        overwrite: Replace a checkpoint in ``target``.
        **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``.

    Returns:
        The paths written.

    Raises:
        CheckpointError: For a checkpoint of another family, or one that is damaged.
        XlmfamError: For a language that is there already, or that is not.
    """
    check_target(source, target, overwrite)
    with recognise(source, **hub) as checkpoint:
        config = checkpoint.config
        if not isinstance(config, XmodConfig):
            raise CheckpointError(f"{source} is no X-MOD checkpoint but {config.model_type}")
        reader = checked_reader(checkpoint, None)
        for code in add:
            config.check_new_language(code, init_from)
        kept = config.without(remove) if remove else config.languages
        languages = [*kept, *dict.fromkeys(add)]
        changed = XmodConfig.from_dict(
            config.to_dict(),
            languages=languages,
            default_language=_default(config, default_language, languages),
        )
        specs = checkpoint.source.specs()
        dtypes = {name: specs[stored].dtype for name, stored in reader.plan.sources.items()}
        adapters = _Adapters(checkpoint, init_from, seed)

        def origin(parameter: Parameter) -> str:
            return adapters.sources(parameter)[0] if parameter.language in add else parameter.name

        def read(parameter: Parameter) -> np.ndarray:
            if parameter.language not in add:
                return reader.read(parameter.name)
            array = adapters.begin(parameter, reader.read)
            return array.astype(dtypes[origin(parameter)])

        copied = tokenizer_files(source, config.model_type, hub)
        has_options = resolve_file(folder_of(source), GENERATION_CONFIG_NAME, **hub) is not None
        options = load_generation_config(source, changed, **hub) if has_options else None
        return save_parameters(
            target,
            changed,
            checkpoint.head,
            "canonical",
            read,
            lambda parameter: dtypes[origin(parameter)],
            generation_config=options,
            extra_files={name: path.read_bytes() for name, path in copied.items()},
            replaces=belongs_to_checkpoint(config.model_type),
        )


def _default(config: XmodConfig, given: str | None, languages: Sequence[str]) -> str | None:
    """Return the default language of a copy that has ``languages``."""
    if given is not None and given not in languages:
        raise XlmfamError(
            f"the default language must be one of {', '.join(languages)}; got {given!r}"
        )
    wanted = given or config.default_language
    return wanted if wanted in languages else None


class _Adapters:
    """What new adapters begin as.

    Args:
        checkpoint: Has the adapters that there are.
        init_from: See `change_languages`.
        seed: The same.
    """

    def __init__(self, checkpoint: OpenCheckpoint, init_from: str, seed: int):
        self.init_from = init_from
        self.seed = seed
        self.places: dict[tuple[str, str], str] = {}
        self.codes = checkpoint.config.languages
        rows = checkpoint.table.expand(checkpoint.config, checkpoint.head)
        for name, parameter in rows.items():
            if parameter.language is not None:
                self.places[parameter.place, parameter.language] = name

    def sources(self, parameter: Parameter) -> list[str]:
        """Return the names of the same parameter in the adapters to begin from."""
        codes = [self.init_from] if self.init_from in self.codes else self.codes
        return [self.places[parameter.place, code] for code in codes]

    def begin(self, parameter: Parameter, read) -> np.ndarray:
        """Return the values of a new adapter's parameter."""
        if self.init_from != "random":
            arrays = [read(name).astype(np.float32) for name in self.sources(parameter)]
            return np.stack(arrays).mean(0)
        if parameter.kind is not Kind.LINEAR:
            return np.zeros(parameter.shape, np.float32)
        rng = np.random.default_rng([self.seed, zlib.crc32(parameter.name.encode())])
        return rng.normal(0.0, parameter.std, parameter.shape).astype(np.float32)
