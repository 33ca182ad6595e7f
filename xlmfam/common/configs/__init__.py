"""Backend-agnostic model configs."""

from xlmfam.common.configs.auto import AutoConfig, config_class
from xlmfam.common.configs.base import PretrainedConfig
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.configs.xglm import XGLMConfig
from xlmfam.common.configs.xlm import XLMConfig
from xlmfam.common.configs.xmod import XmodConfig

__all__ = [
    "AutoConfig",
    "PretrainedConfig",
    "TransfoXLConfig",
    "XGLMConfig",
    "XLMConfig",
    "XmodConfig",
    "config_class",
]
