"""Model classes by the family that a checkpoint is of."""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

from xlmfam.common.configs import AutoConfig, PretrainedConfig
from xlmfam.common.configs.base import pop_hub_arguments
from xlmfam.common.errors import ConfigError

MODELS = {"xglm": ("xlmfam.tf.xglm", "XGLMModel")}
CAUSAL_LMS = {"xglm": ("xlmfam.tf.xglm", "XGLMForCausalLM")}


class AutoClass:
    """Chooses a class by the config's ``model_type``."""

    classes: ClassVar[dict[str, tuple[str, str]]]

    @classmethod
    def model_class(cls, config: PretrainedConfig) -> Any:
        """Return the class for ``config``.

        Raises:
            ConfigError: When the family has none, listing those that have.
        """
        if config.model_type not in cls.classes:
            raise ConfigError(
                f"{cls.__name__} has no class for model_type '{config.model_type}'; "
                f"it has {', '.join(sorted(cls.classes))}"
            )
        module, name = cls.classes[config.model_type]
        return getattr(importlib.import_module(module), name)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """Build a model with initial values."""
        return cls.model_class(config).from_config(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:
        """Load a checkpoint; arguments as in the model's own ``from_pretrained``."""
        config = kwargs.get("config")
        if not isinstance(config, PretrainedConfig):
            hub = pop_hub_arguments(dict(kwargs))
            config = AutoConfig.from_pretrained(config or pretrained_model_name_or_path, **hub)
        model_class = cls.model_class(config)
        return model_class.from_pretrained(pretrained_model_name_or_path, **kwargs)


class AutoModel(AutoClass):
    """The model without a head."""

    classes = MODELS


class AutoModelForCausalLM(AutoClass):
    """The causal language model."""

    classes = CAUSAL_LMS


TFAutoModel = AutoModel
TFAutoModelForCausalLM = AutoModelForCausalLM
