"""Parameters of a model from and to checkpoint files, by the parameter table.

The three backends load and save through here: they say which layout they want and hand over or
take one array at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.files import FORMATS, open_checkpoint, save_checkpoint
from xlmfam.common.checkpoints.source import DTYPES, TensorSource, TensorSpec
from xlmfam.common.errors import CheckpointError, ConfigError
from xlmfam.common.generation import GENERATION_CONFIG_NAME, GenerationConfig
from xlmfam.common.logging import get_logger
from xlmfam.common.logging import progress as progress_bar
from xlmfam.common.parameters import (
    OTHER_LANGUAGE,
    LoadPlan,
    Parameter,
    Spelling,
    layout_shape,
    plan_loading,
    relayout,
    spell,
    table_of,
)

logger = get_logger(__name__)

# The layout and names of each file format.
FORMAT_SPELLINGS: dict[str, Spelling] = {
    "safetensors": "canonical",
    "pt": "canonical",
    "tf": "keras_h5",
    "flax": "flax",
}


@dataclass
class ParameterReader:
    """An open checkpoint that fits a model.

    Attributes:
        parameters: Every parameter of the class, by canonical name.
        plan: Where each comes from.
        source: The open file.
        layout: The layout that arrays are given in.
        dtype: The dtype that floating-point arrays are given in; ``None`` keeps the file's.
    """

    parameters: dict[str, Parameter]
    plan: LoadPlan
    source: TensorSource
    layout: Spelling
    dtype: np.dtype | None

    def __enter__(self) -> ParameterReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()

    def names(self) -> list[str]:
        """Return the names to read, the largest first: its copy then never adds to the rest."""
        return sorted(self.plan.sources, key=lambda name: -self.parameters[name].size)

    def read(self, name: str) -> np.ndarray:
        """Return one parameter in ``layout`` and ``dtype``; a view of the read data if it can."""
        parameter = self.parameters[name]
        array = self.source.read(self.plan.sources[name])
        array = relayout(array, parameter, self.source.spelling, self.layout)
        if self.dtype is not None and is_floating(array.dtype) and array.dtype != self.dtype:
            array = array.astype(self.dtype)
        return array

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Read everything, one parameter at a time, behind a progress bar."""
        for name in progress_bar(self.names(), "Loading"):
            yield name, self.read(name)


def is_floating(dtype: np.dtype) -> bool:
    """Whether ``dtype`` is a floating-point one (bfloat16 too)."""
    return dtype.name.startswith(("float", "bfloat"))


def open_parameters(
    name_or_path: str | os.PathLike,
    config: Any,
    head: str,
    layout: Spelling,
    *,
    dtype: str | None = "float32",
    format: str | None = None,
    ignore_mismatched_sizes: bool = False,
    **hub: Any,
) -> ParameterReader:
    """Open a checkpoint and hold it against the table; nothing is read yet.

    Args:
        name_or_path: Folder, file or hub id.
        config: The config.
        head: Class to load into.
        layout: Layout to give arrays in.
        dtype: Name of the dtype to give floating-point arrays in, ``"auto"`` for the config's
            or else the file's, ``None`` for the file's per tensor.
        format: Only this file format.
        ignore_mismatched_sizes: Treat parameters of another shape as new.
        **hub: Where on the hub to look.

    Raises:
        CheckpointError: Listing everything that does not fit.
    """
    source = open_checkpoint(name_or_path, format=format, **hub)
    try:
        specs = source.specs()
        table = table_of(config.model_type)
        plan = plan_loading(table, config, head, specs, source.spelling, ignore_mismatched_sizes)
        for name in plan.sources.values():
            if not is_floating(specs[name].dtype):
                raise CheckpointError(
                    f"{name} holds {specs[name].dtype.name}; parameters must be floating-point"
                )
    except BaseException:
        source.close()
        raise
    report(head, plan)
    if dtype == "auto":
        dtype = config.torch_dtype or _main_dtype(plan, specs)
    return ParameterReader(
        table.expand(config, head), plan, source, layout, None if dtype is None else as_dtype(dtype)
    )


def _main_dtype(plan: LoadPlan, specs: dict[str, TensorSpec]) -> str:
    dtypes = [specs[name].dtype.name for name in plan.sources.values()]
    return max(set(dtypes), key=dtypes.count)


def as_dtype(name: str) -> np.dtype:
    """Return the NumPy dtype of a floating-point dtype's name.

    Raises:
        ConfigError: Listing the names that can be.
    """
    floating = [known for known, dtype in DTYPES.items() if is_floating(dtype)]
    if name not in floating:
        raise ConfigError(f"dtype must be one of {', '.join(floating)}; got {name!r}")
    return DTYPES[name]


def report(head: str, plan: LoadPlan) -> None:
    """Say what was not read and what starts anew."""
    for name, reason in plan.dropped.items():
        expected = reason.startswith("tied") or reason == OTHER_LANGUAGE
        level = logger.info if expected else logger.warning
        level("not read: %s (%s)", name, reason)
    if plan.new:
        logger.warning("new in %s, to be trained: %s", head, ", ".join(plan.new))


def save_parameters(
    folder: str | os.PathLike,
    config: Any,
    head: str,
    layout: Spelling,
    read: Callable[[Parameter], np.ndarray],
    dtype_of: Callable[[Parameter], np.dtype],
    *,
    format: str = "safetensors",
    max_shard_size: int | str = "5GB",
    generation_config: GenerationConfig | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    progress: Callable[[int], None] | None = None,
    replaces: Callable[[str], bool] | None = None,
) -> list[Path]:
    """Write a model folder: weights in ``format``, ``config.json``, ``generation_config.json``.

    Args:
        folder: Where; made when missing, swapped as a whole so that a killed save does no harm.
        config: The config.
        head: The class.
        layout: Layout of what ``read`` gives.
        read: Gives one parameter; never asked for one that is tied to another.
        dtype_of: Dtype of a parameter.
        format: ``safetensors``, ``pt``, ``tf`` or ``flax``.
        max_shard_size: Larger checkpoints are split, e.g. ``"2GB"``.
        generation_config: Written beside the config.
        extra_files: Name and content of more files to write.
        progress: Called with the number of bytes after each tensor.
        replaces: Tells which other files of the folder go as well.

    Returns:
        The paths written.
    """
    if format not in FORMAT_SPELLINGS:
        raise CheckpointError(
            f"format must be one of {', '.join(FORMAT_SPELLINGS)}; got {format!r}"
        )
    spelling = FORMAT_SPELLINGS[format]
    stored = stored_parameters(config, head, format)
    twins = twins_in(stored, format)
    kept: dict[str, np.ndarray] = {}

    def read_stored(name: str) -> np.ndarray:
        parameter, origin = stored[name]
        if origin.name in kept:
            return kept[origin.name]
        canonical = relayout(read(origin), origin, layout, "canonical")
        array = relayout(canonical, parameter, "canonical", spelling)
        if spell(origin, spelling) in twins.values():
            kept[origin.name] = array
        return array

    specs = {
        name: TensorSpec(layout_shape(parameter, spelling), dtype_of(origin))
        for name, (parameter, origin) in stored.items()
    }
    main_dtype = specs[next(iter(specs))].dtype.name
    extra = {**(extra_files or {}), **model_files(config, head, main_dtype, generation_config)}
    warn_of_others(Path(folder).expanduser(), format)
    return save_checkpoint(
        folder,
        specs,
        read_stored,
        format=format,
        max_shard_size=max_shard_size,
        extra_files=extra,
        architecture=head.partition("(")[0],
        progress=progress,
        replaces=replaces,
        twins=twins,
    )


def twins_in(stored: Mapping[str, tuple[Parameter, Parameter]], format: str) -> dict[str, str]:
    """Return the names that are one tensor with another in a file, with the other's name.

    Args:
        stored: See `stored_parameters`.
        format: The format; only a .bin file knows such names.
    """
    if format != "pt":
        return {}
    names = {parameter.name: name for name, (parameter, _) in stored.items()}
    return {name: names[origin.name] for name, (p, origin) in stored.items() if p is not origin}


def stored_parameters(
    config: Any, head: str, format: str
) -> dict[str, tuple[Parameter, Parameter]]:
    """Return what a file of a format holds.

    Args:
        config: The config.
        head: The class.
        format: ``safetensors``, ``pt``, ``tf`` or ``flax``.

    Returns:
        By the name in the file, the parameter and the one whose values it has: another where it
        is tied, which not all formats store.
    """
    table = table_of(config.model_type)
    parameters = table.expand(config, head)
    has_ties = format == "pt" or (format == "tf" and table.h5_has_ties)
    shared = {p.full_name: p for p in parameters.values()}
    return {
        spell(p, FORMAT_SPELLINGS[format]): (p, shared[p.tied_to] if p.tied_to else p)
        for p in parameters.values()
        if p.tied_to is None or has_ties
    }


def model_files(
    config: Any, head: str, dtype: str, generation_config: GenerationConfig | None
) -> dict[str, str]:
    """Return name and text of what lies beside the weights: the config, maybe options.

    Args:
        config: The config.
        head: The class.
        dtype: Name of the weights' dtype.
        generation_config: Options of ``generate``.
    """
    saved = type(config).from_dict(config.to_dict())
    saved.architectures = [head.partition("(")[0]]
    saved.torch_dtype = dtype
    files = {"config.json": saved.to_json_string()}
    if generation_config is not None:
        files[GENERATION_CONFIG_NAME] = generation_config.to_json_string()
    return files


def warn_of_others(folder: Path, format: str) -> None:
    """Say so when the folder holds weights of a format that loading would look for first."""
    before = list(FORMATS)[: list(FORMATS).index(format)]
    older = [name for f in before for name in (FORMATS[f].single, FORMATS[f].index)]
    there = [name for name in older if (folder / name).exists()]
    if there:
        logger.warning(
            "%s also holds %s, which from_pretrained reads first: delete it, or load with "
            "format=%r",
            folder,
            " and ".join(there),
            format,
        )


def load_generation_config(
    name_or_path: str | os.PathLike, config: Any, **hub: Any
) -> GenerationConfig:
    """Return the options in ``generation_config.json``, or else those in ``config.json``."""
    from xlmfam.common.checkpoints.locate import resolve_file

    path = Path(name_or_path)
    folder = path.parent if path.is_file() else name_or_path
    if resolve_file(os.fspath(folder), GENERATION_CONFIG_NAME, **hub) is None:
        return GenerationConfig.from_model_config(config)
    return GenerationConfig.from_pretrained(folder, **hub)


# How transformers' arguments name the file format to read.
FORMAT_ARGUMENTS = {"from_pt": "pt", "from_tf": "tf", "from_flax": "flax"}


def pop_loading_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take ``format`` and transformers' ways of saying it out of ``kwargs``.

    ``from_pt=True`` and its siblings prefer that format's file and, as there, also accept
    safetensors; ``use_safetensors=True`` insists on safetensors.
    """
    chosen = {"format": kwargs.pop("format", None)}
    if kwargs.pop("use_safetensors", None):
        chosen["format"] = "safetensors"
    for name in FORMAT_ARGUMENTS:
        kwargs.pop(name, None)  # the file in the folder tells; nothing needs to be said
    if "ignore_mismatched_sizes" in kwargs:
        chosen["ignore_mismatched_sizes"] = kwargs.pop("ignore_mismatched_sizes")
    for name in ("low_cpu_mem_usage", "trust_remote_code", "resume_download", "force_download"):
        kwargs.pop(name, None)  # always frugal; no code from a checkpoint is ever run
    return chosen


def build_config(config_class: Any, name_or_path: str | os.PathLike, kwargs: dict, hub: dict):
    """Return the config of a checkpoint, overridden by what of ``kwargs`` names a setting.

    Args:
        config_class: The family's config class.
        name_or_path: The checkpoint.
        kwargs: Overrides; ``config`` may hold a ready config or a path of one.
        hub: Where on the hub to look.

    Raises:
        ConfigError: Naming overrides that are no setting.
    """
    config = kwargs.pop("config", None)
    if config is None or isinstance(config, str | os.PathLike):
        config = config_class.from_pretrained(config or name_or_path, **hub)
    elif not isinstance(config, config_class):
        raise ConfigError(f"config must be a {config_class.__name__}, got {type(config).__name__}")
    unknown = [k for k in kwargs if not hasattr(config, k) or callable(getattr(config, k))]
    if unknown:
        raise ConfigError(
            f"from_pretrained has no argument and {type(config).__name__} no setting called "
            f"{', '.join(unknown)}"
        )
    if not kwargs:
        return config
    changed = config_class.from_dict(config.to_dict(), **kwargs)
    changed._stored = config
    return changed
