"""Model classes by the family that a checkpoint is of: names, the same in every backend."""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

from xlmfam.common.configs import AutoConfig, PretrainedConfig
from xlmfam.common.configs.base import pop_hub_arguments
from xlmfam.common.errors import ConfigError

MODELS = {
    "transfo-xl": "TransfoXLModel",
    "xglm": "XGLMModel",
    "xlm": "XLMModel",
    "xmod": "XmodModel",
}
CAUSAL_LMS = {
    "transfo-xl": "TransfoXLLMHeadModel",
    "xglm": "XGLMForCausalLM",
    "xlm": "XLMWithLMHeadModel",
    "xmod": "XmodForCausalLM",
}
MASKED_LMS = {"xlm": "XLMWithLMHeadModel", "xmod": "XmodForMaskedLM"}
PRETRAINING = {**CAUSAL_LMS, **MASKED_LMS}
SEQUENCE_CLASSIFIERS = {
    "transfo-xl": "TransfoXLForSequenceClassification",
    "xlm": "XLMForSequenceClassification",
    "xmod": "XmodForSequenceClassification",
}
MULTIPLE_CHOICE = {"xlm": "XLMForMultipleChoice", "xmod": "XmodForMultipleChoice"}
TOKEN_CLASSIFIERS = {"xlm": "XLMForTokenClassification", "xmod": "XmodForTokenClassification"}
QUESTION_ANSWERING = {
    "xlm": "XLMForQuestionAnsweringSimple",
    "xmod": "XmodForQuestionAnswering",
}
SEQ2SEQ_LMS = {"xlm": "XLMEncoderDecoder"}


class AutoClass:
    """Chooses a class of a backend by the config's ``model_type``."""

    backend: ClassVar[str]  # the package with the classes
    classes: ClassVar[dict[str, str]]

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
        package = importlib.import_module(cls.backend)
        return getattr(package, cls.classes[config.model_type])

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
