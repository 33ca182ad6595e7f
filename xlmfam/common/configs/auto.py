"""Finding the config class of a checkpoint by its ``model_type``."""

from __future__ import annotations

import importlib
import os
from typing import Any

from xlmfam.common.configs.base import PretrainedConfig, pop_hub_arguments, read_config_dict
from xlmfam.common.errors import ConfigError

# model_type -> where its config class stands
CONFIGS = {
    "xglm": ("xlmfam.common.configs.xglm", "XGLMConfig"),
    "xlm": ("xlmfam.common.configs.xlm", "XLMConfig"),
    "transfo-xl": ("xlmfam.common.configs.transfo_xl", "TransfoXLConfig"),
    "xmod": ("xlmfam.common.configs.xmod", "XmodConfig"),
}


def config_class(model_type: str | None) -> type[PretrainedConfig]:
    """Return the config class of a family.

    Raises:
        ConfigError: When the family is not one of ours, with the list of those.
    """
    if not isinstance(model_type, str) or model_type not in CONFIGS:
        raise ConfigError(
            f"model_type {model_type!r} is not one of xlmfam's: {', '.join(sorted(CONFIGS))}"
        )
    module, name = CONFIGS[model_type]
    return getattr(importlib.import_module(module), name)


class AutoConfig:
    """Makes the config of whatever family a checkpoint is of."""

    @staticmethod
    def for_model(model_type: str, **kwargs: Any) -> PretrainedConfig:
        """Return a config of family ``model_type`` with settings ``kwargs``."""
        return config_class(model_type)(**kwargs)

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> PretrainedConfig:
        """Read ``config.json`` of a folder or hub repository into its family's config.

        Raises:
            ConfigError: When the file is missing or of an unknown family.
        """
        hub = pop_hub_arguments(kwargs)
        data = read_config_dict(pretrained_model_name_or_path, **hub)
        data["_name_or_path"] = os.fspath(pretrained_model_name_or_path)
        return config_class(data.get("model_type")).from_dict(data, **kwargs)
