"""``AutoTokenizer``: the tokenizer that the files of a checkpoint ask for."""

from __future__ import annotations

import importlib
import os
from typing import Any, NamedTuple

from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.logging import get_logger

logger = get_logger(__name__)


class Entry(NamedTuple):
    """The tokenizers of one family, as ``module:class``; ``None`` where there is none."""

    slow: str | None
    fast: str | None


# By model_type of config.json. A new family adds a row here, and nothing else.
TOKENIZERS: dict[str, Entry] = {
    "transfo-xl": Entry("xlmfam.common.tokenizers.transfo_xl:TransfoXLTokenizer", None),
    "xglm": Entry(
        "xlmfam.common.tokenizers.xglm:XGLMTokenizer",
        "xlmfam.common.tokenizers.xglm_fast:XGLMTokenizerFast",
    ),
    "xlm": Entry("xlmfam.common.tokenizers.xlm:XLMTokenizer", None),
    "xmod": Entry(
        "xlmfam.common.tokenizers.xlm_roberta:XLMRobertaTokenizer",
        "xlmfam.common.tokenizers.xlm_roberta_fast:XLMRobertaTokenizerFast",
    ),
}


def register(model_type: str, slow: str | None, fast: str | None) -> None:
    """Make `AutoTokenizer` know a family.

    Args:
        model_type: As ``config.json`` has it.
        slow: The slow tokenizer as ``module:class``, imported when it is first needed.
        fast: The fast one.
    """
    TOKENIZERS[model_type] = Entry(slow, fast)


def _load(target: str) -> Any:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def _class_names(entry: Entry) -> set[str]:
    """Return the class names that mean this entry; files name the slow class, mostly."""
    names = {target.split(":")[1] for target in entry if target is not None}
    return names | {name.removesuffix("Fast") for name in names}


def _known() -> str:
    rows = [f"{kind} ({', '.join(sorted(_class_names(e)))})" for kind, e in TOKENIZERS.items()]
    return "; ".join(rows)


class AutoTokenizer:
    """Makes the tokenizer that a checkpoint asks for; it is never an object itself."""

    def __init__(self) -> None:
        raise XlmfamError("AutoTokenizer is made by AutoTokenizer.from_pretrained(folder_or_id)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *inputs: Any,
        use_fast: bool = True,
        tokenizer_type: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load the tokenizer of a checkpoint.

        ``tokenizer_class`` of ``tokenizer_config.json`` decides; where it is missing or not
        known, ``tokenizer_class`` and ``model_type`` of ``config.json`` do.

        Args:
            pretrained_model_name_or_path: A folder or the id of a hub repository.
            *inputs: Positional arguments of the tokenizer.
            use_fast: Prefer the tokenizer on the ``tokenizers`` library.
            tokenizer_type: The family, such as ``xglm``, whatever the files say.
            **kwargs: See ``from_pretrained`` of the tokenizer.

        Returns:
            The tokenizer.

        Raises:
            CheckpointError: the files ask for a tokenizer that is not known here.
        """
        from .files import CONFIG_FILE, Locator, take_location

        config = kwargs.pop("config", None)
        locator = Locator(pretrained_model_name_or_path, **take_location(dict(kwargs)))
        asked: list[str] = []
        entry = None
        if tokenizer_type is not None:
            entry = TOKENIZERS.get(tokenizer_type)
            asked.append(f"tokenizer_type={tokenizer_type!r}")
        else:
            settings = locator.read_json(CONFIG_FILE)
            entry = _entry_by_class(settings.get("tokenizer_class"), CONFIG_FILE, asked)
            if entry is None:
                values = _as_dict(config, locator)
                entry = _entry_by_class(values.get("tokenizer_class"), "config.json", asked)
                if entry is None and values.get("model_type"):
                    asked.append(f"model_type {values['model_type']!r} of config.json")
                    entry = TOKENIZERS.get(values["model_type"])
        if entry is None:
            found = ", ".join(asked) or "no tokenizer_class and no model_type"
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: no tokenizer is known for {found}; "
                f"known are {_known()}"
            )
        return _from_entry(entry, use_fast, pretrained_model_name_or_path, inputs, kwargs)


def _as_dict(config: Any, locator: Any) -> dict[str, Any]:
    if config is None:
        return locator.read_json("config.json")
    return {name: getattr(config, name, None) for name in ("tokenizer_class", "model_type")}


def _entry_by_class(name: Any, source: str, asked: list[str]) -> Entry | None:
    if not isinstance(name, str):
        return None
    asked.append(f"tokenizer_class {name!r} of {source}")
    return next((e for e in TOKENIZERS.values() if name in _class_names(e)), None)


def _from_entry(
    entry: Entry, use_fast: bool, path: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    order = [entry.fast, entry.slow] if use_fast else [entry.slow, entry.fast]
    target = next(target for target in order if target is not None)
    if use_fast and entry.fast is None:
        logger.info("there is no fast tokenizer of this kind: %s", target)
    return _load(target).from_pretrained(path, *inputs, **kwargs)
